// What secures a pool's calls beyond this machine where the config names no certificates: one that
// the run makes for itself. Learner and workers prove to each other that they have its key, which
// lies with the secret; of host names nothing is asked.
#pragma once

#include <string>

namespace hone::rl {

// That the certificate is for, in place of a host.
inline constexpr char kOwnCertificateName[] = "hone";

// PEM: a fresh private key, and a certificate that it signed itself.
std::string MakeOwnCertificate();
// Whether that is in the file; false where there is none.
bool HasOwnCertificate(const std::string& path);

// Of HOST:PORT: whether it is an address of this machine for itself, or all that it has.
bool IsLoopback(const std::string& listen);
bool IsWildcard(const std::string& listen);

}  // namespace hone::rl
