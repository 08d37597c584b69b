// SPDX-License-Identifier: MIT
#include "net/zmq_library.h"

#ifdef TOKENSPEED_LINK_LIBZMQ
extern "C" {
void* zmq_ctx_new();
int zmq_ctx_shutdown(void*);
int zmq_ctx_term(void*);
void* zmq_socket(void*, int);
int zmq_close(void*);
int zmq_bind(void*, const char*);
int zmq_setsockopt(void*, int, const void*, size_t);
int zmq_send(void*, const void*, size_t, int);
int zmq_msg_init(tokenspeed::net::ZmqMessage*);
int zmq_msg_recv(tokenspeed::net::ZmqMessage*, void*, int);
void* zmq_msg_data(tokenspeed::net::ZmqMessage*);
size_t zmq_msg_size(const tokenspeed::net::ZmqMessage*);
int zmq_msg_more(const tokenspeed::net::ZmqMessage*);
int zmq_msg_close(tokenspeed::net::ZmqMessage*);
int zmq_poll(tokenspeed::net::ZmqPollItem*, int, long);
int zmq_errno();
const char* zmq_strerror(int);
void zmq_version(int*, int*, int*);
}
#else
#include <dlfcn.h>
#endif

namespace tokenspeed::net {

#ifdef TOKENSPEED_LINK_LIBZMQ

Result<ZmqLibrary> LoadZmq(const std::string&) {
  return ZmqLibrary{zmq_ctx_new,  zmq_ctx_shutdown, zmq_ctx_term, zmq_socket,    zmq_close,
                    zmq_bind,     zmq_setsockopt,   zmq_send,     zmq_msg_init,  zmq_msg_recv,
                    zmq_msg_data, zmq_msg_size,     zmq_msg_more, zmq_msg_close, zmq_poll,
                    zmq_errno,    zmq_strerror,     zmq_version};
}

#else

Result<ZmqLibrary> LoadZmq(const std::string& path) {
  const std::string name = path.empty() ? "libzmq.so.5" : path;
  // Left open: the library's threads may outlive every call that we make.
  void* handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    return Error{std::string("cannot open libzmq: ") + dlerror() +
                 "; pass --libzmq the library inside the pyzmq package (pyzmq.libs/libzmq*.so*)"};
  }
  ZmqLibrary zmq{};
  std::string missing;
  const auto find = [&](const char* symbol, auto& function) {
    void* address = dlsym(handle, symbol);
    if (address == nullptr) missing = symbol;
    function = reinterpret_cast<std::remove_reference_t<decltype(function)> >(address);
  };
  find("zmq_ctx_new", zmq.ctx_new);
  find("zmq_ctx_shutdown", zmq.ctx_shutdown);
  find("zmq_ctx_term", zmq.ctx_term);
  find("zmq_socket", zmq.socket);
  find("zmq_close", zmq.close);
  find("zmq_bind", zmq.bind);
  find("zmq_setsockopt", zmq.setsockopt);
  find("zmq_send", zmq.send);
  find("zmq_msg_init", zmq.msg_init);
  find("zmq_msg_recv", zmq.msg_recv);
  find("zmq_msg_data", zmq.msg_data);
  find("zmq_msg_size", zmq.msg_size);
  find("zmq_msg_more", zmq.msg_more);
  find("zmq_msg_close", zmq.msg_close);
  find("zmq_poll", zmq.poll);
  find("zmq_errno", zmq.last_errno);
  find("zmq_strerror", zmq.strerror);
  find("zmq_version", zmq.version);
  if (!missing.empty()) return Error{name + " is no libzmq 4: it lacks " + missing};
  return zmq;
}

#endif

}  // namespace tokenspeed::net
