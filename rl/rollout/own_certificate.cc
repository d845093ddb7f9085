#include "rl/rollout/own_certificate.h"

#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509v3.h>

#include <fstream>
#include <iterator>
#include <memory>

#include "runtime/error.h"

namespace hone::rl {
namespace {

constexpr long kDay = 24 * 3600, kYears = 10 * 365 * kDay;

template <auto free>
struct Free {
  void operator()(auto* p) const { free(p); }
};
using Key = std::unique_ptr<EVP_PKEY, Free<EVP_PKEY_free>>;
using Certificate = std::unique_ptr<X509, Free<X509_free>>;
using Extension = std::unique_ptr<X509_EXTENSION, Free<X509_EXTENSION_free>>;
using Memory = std::unique_ptr<BIO, Free<BIO_free>>;

void Add(X509* certificate, int kind, const std::string& value) {
  const Extension extension(X509V3_EXT_conf_nid(nullptr, nullptr, kind, value.c_str()));
  Check(extension && X509_add_ext(certificate, extension.get(), -1),
        "[tls] no certificate could be made");
}

std::string HostOf(const std::string& listen) { return listen.substr(0, listen.rfind(':')); }

}  // namespace

std::string MakeOwnCertificate() {
  const Key key(EVP_EC_gen("P-256"));
  const Certificate certificate(X509_new());
  uint32_t serial = 0;
  bool ok = key && certificate &&
            RAND_bytes(reinterpret_cast<unsigned char*>(&serial), sizeof serial) == 1;
  X509* x = certificate.get();
  ok = ok && X509_set_version(x, X509_VERSION_3) &&
       ASN1_INTEGER_set_uint64(X509_get_serialNumber(x), serial) &&
       X509_gmtime_adj(X509_getm_notBefore(x), -kDay) &&  // clocks of nodes differ
       X509_gmtime_adj(X509_getm_notAfter(x), kYears) && X509_set_pubkey(x, key.get()) &&
       X509_NAME_add_entry_by_txt(X509_get_subject_name(x), "CN", MBSTRING_ASC,
                                  reinterpret_cast<const unsigned char*>(kOwnCertificateName), -1,
                                  -1, 0) &&
       X509_set_issuer_name(x, X509_get_subject_name(x));
  if (ok) {
    Add(x, NID_basic_constraints, "critical,CA:TRUE");
    Add(x, NID_subject_alt_name, std::string("DNS:") + kOwnCertificateName);
  }
  const Memory memory(BIO_new(BIO_s_mem()));
  ok = ok && X509_sign(x, key.get(), EVP_sha256()) && memory &&
       PEM_write_bio_PrivateKey(memory.get(), key.get(), nullptr, nullptr, 0, nullptr, nullptr) &&
       PEM_write_bio_X509(memory.get(), x);
  Check(ok, "[tls] no certificate could be made");
  char* text = nullptr;
  const long size = BIO_get_mem_data(memory.get(), &text);
  return {text, static_cast<size_t>(size)};
}

bool HasOwnCertificate(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  return text.find("-----BEGIN CERTIFICATE-----") != std::string::npos;
}

bool IsLoopback(const std::string& listen) {
  const std::string host = HostOf(listen);
  return host == "localhost" || host == "[::1]" || host.starts_with("127.");
}

bool IsWildcard(const std::string& listen) {
  const std::string host = HostOf(listen);
  return host == "0.0.0.0" || host == "[::]";
}

}  // namespace hone::rl
