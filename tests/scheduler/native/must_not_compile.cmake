# SPDX-License-Identifier: MIT
# cmake -DCOMPILER=.. -DINCLUDE=.. -DHEADERS=.. -DSOURCE=.. -P must_not_compile.cmake
# The source compiles as it is. With -DMISTAKE it does not, and the compiler says what the source's
# EXPECTED line (a regular expression) expects, about a line inside its #ifdef MISTAKE.
set(ENV{LC_ALL} C)
set(COMPILE ${COMPILER} -std=c++20 -fsyntax-only -include ${HEADERS} -I${INCLUDE})

execute_process(COMMAND ${COMPILE} ${SOURCE} RESULT_VARIABLE failed ERROR_VARIABLE said)
if(failed)
  message(FATAL_ERROR "does not compile without its mistake:\n${said}")
endif()

file(STRINGS ${SOURCE} lines)
set(number 0)
foreach(line IN LISTS lines)
  math(EXPR number "${number} + 1")
  if(line MATCHES "^// EXPECTED: (.+)$")
    set(expected "${CMAKE_MATCH_1}")
  elseif(line STREQUAL "#ifdef MISTAKE")
    set(first ${number})
  elseif(line MATCHES "^#(else|endif)$" AND NOT DEFINED last)
    set(last ${number})
  endif()
endforeach()

execute_process(COMMAND ${COMPILE} -DMISTAKE ${SOURCE} RESULT_VARIABLE failed ERROR_VARIABLE said)
if(NOT failed)
  message(FATAL_ERROR "compiles with its mistake")
endif()
if(NOT said MATCHES "${expected}")
  message(FATAL_ERROR "fails without saying \"${expected}\":\n${said}")
endif()
get_filename_component(name ${SOURCE} NAME)
foreach(number RANGE ${first} ${last})
  if(said MATCHES "${name}:${number}:")
    return()
  endif()
endforeach()
message(FATAL_ERROR "fails elsewhere than in its mistake:\n${said}")
