// Are these files the ones that a trusted exporter signed, and what do they promise?
//
//   manifest.json  {"schema_version": ..., "files": {name: sha256}}
//   manifest.sig   ed25519 over the exact bytes of manifest.json, by a key of the trusted folder
//
// Order matters: TorchScript is code. Signature, then hashes, then the card; only bytes that passed
// leave this file, so nobody can change a file between its check and its use. Needs OpenSSL's
// libcrypto and nlohmann's json, not LibTorch.
#pragma once

#include <nlohmann/json.hpp>
#include <openssl/evp.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace kcpr {

/// What a user or a machine can mend, in one sentence.
struct Refusal : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// One scalar of an observation or action vector, in `unit`.
struct Entry {
  std::string name, unit;
  double low, high;
};

/// What controller and robot must agree on.
struct Contract {
  std::string task;
  std::vector<Entry> observation, action;
  double period_s = 0;
};

/// A folder whose every byte was signed by `key`.
struct Bundle {
  std::filesystem::path folder;
  std::map<std::string, std::string> files;
  std::string key;
  std::string manifest_sha256;
  nlohmann::json card;
  Contract contract;
};

inline constexpr std::uintmax_t kMaxFileBytes = 64u << 20;
inline constexpr std::size_t kKeyDigits = 64;
inline constexpr std::size_t kSignatureBytes = 64;
inline constexpr char kSchemaVersion[] = "1";

inline std::string read_file(const std::filesystem::path& path,
                             std::uintmax_t limit = kMaxFileBytes) {
  namespace fs = std::filesystem;
  std::error_code fault;
  const auto kind = fs::symlink_status(path, fault).type();
  if (kind == fs::file_type::not_found) throw Refusal(path.string() + " is missing");
  if (kind != fs::file_type::regular) throw Refusal(path.string() + " is not a regular file");
  const auto size = fs::file_size(path, fault);
  if (fault || size > limit)
    throw Refusal(path.string() + " is larger than the " + std::to_string(limit >> 20) +
                  " MiB of its kind");
  std::string bytes(size, '\0');
  std::ifstream stream(path, std::ios::binary);
  stream.read(bytes.data(), static_cast<std::streamsize>(size));
  if (!stream || stream.peek() != std::ifstream::traits_type::eof())
    throw Refusal(path.string() + " cannot be read");
  return bytes;
}

inline std::string hex(std::string_view bytes) {
  static constexpr char digits[] = "0123456789abcdef";
  std::string text;
  for (const unsigned char byte : bytes) {
    text += digits[byte >> 4];
    text += digits[byte & 15];
  }
  return text;
}

inline std::string sha256(std::string_view bytes) {
  std::array<unsigned char, 32> digest{};
  unsigned int length = 0;
  if (EVP_Digest(bytes.data(), bytes.size(), digest.data(), &length, EVP_sha256(), nullptr) != 1)
    throw Refusal("OpenSSL cannot compute SHA-256");
  return hex({reinterpret_cast<const char*>(digest.data()), digest.size()});
}

inline bool signed_by(std::string_view key, std::string_view signature, std::string_view message) {
  const auto bytes = [](std::string_view view) {
    return reinterpret_cast<const unsigned char*>(view.data());
  };
  const std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)> pkey(
      EVP_PKEY_new_raw_public_key(EVP_PKEY_ED25519, nullptr, bytes(key), key.size()),
      EVP_PKEY_free);
  const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context(EVP_MD_CTX_new(),
                                                                        EVP_MD_CTX_free);
  return pkey && context &&
         EVP_DigestVerifyInit(context.get(), nullptr, nullptr, nullptr, pkey.get()) == 1 &&
         EVP_DigestVerify(context.get(), bytes(signature), signature.size(), bytes(message),
                          message.size()) == 1;
}

inline std::string unhex(std::string_view digits) {
  std::string bytes;
  for (std::size_t i = 0; i + 1 < digits.size(); i += 2)
    bytes += static_cast<char>(std::stoi(std::string(digits.substr(i, 2)), nullptr, 16));
  return bytes;
}

/// ID -> 32 raw bytes, of one ID.pub (64 hexadecimal digits, a newline) or of all in a folder.
inline std::map<std::string, std::string> trusted_keys(const std::filesystem::path& place) {
  std::vector<std::filesystem::path> paths;
  if (std::filesystem::is_directory(place)) {
    for (const auto& item : std::filesystem::directory_iterator(place))
      if (item.path().extension() == ".pub") paths.push_back(item.path());
  } else {
    paths.push_back(place);
  }
  std::map<std::string, std::string> keys;
  for (const auto& path : paths) {
    std::string text = read_file(path);
    if (text.ends_with('\n')) text.pop_back();
    if (text.size() != kKeyDigits || text.find_first_not_of("0123456789abcdef") != text.npos)
      throw Refusal(path.string() + " is no key: it must hold 64 hexadecimal digits");
    keys[path.stem().string()] = unhex(text);
  }
  if (keys.empty()) throw Refusal(place.string() + " holds no trusted key (ID.pub)");
  return keys;
}

inline nlohmann::json parse_object(const std::string& text, const std::string& name) {
  auto value = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!value.is_object()) throw Refusal(name + " is no JSON object");
  return value;
}

inline std::vector<Entry> parse_entries(const nlohmann::json& list) {
  const auto bound = [](const nlohmann::json& item, const char* key, double open) {
    return item.at(key).is_null() ? open : item.at(key).get<double>();
  };
  constexpr double inf = std::numeric_limits<double>::infinity();
  std::vector<Entry> entries;
  for (const auto& item : list)
    entries.push_back({item.at("name"), item.at("unit"), bound(item, "low", -inf),
                       bound(item, "high", inf)});
  return entries;
}

inline Contract parse_contract(const nlohmann::json& card, const std::string& name) {
  try {
    const auto& record = card.at("contract");
    Contract contract{record.at("task"), parse_entries(record.at("observation")),
                      parse_entries(record.at("action")), record.at("period_s")};
    if (contract.observation.empty() || contract.action.empty() || !(contract.period_s > 0))
      throw Refusal(name + " holds a contract without entries or without a period");
    return contract;
  } catch (const nlohmann::json::exception& error) {
    throw Refusal(name + " holds no contract: " + error.what());
  }
}

/// Verify every byte of a bundle; `trust` is a folder of ID.pub files or one such file.
inline Bundle open_bundle(const std::filesystem::path& folder, const std::filesystem::path& trust) {
  namespace fs = std::filesystem;
  if (!fs::is_directory(folder)) throw Refusal(folder.string() + " is no bundle folder");
  const std::string manifest = read_file(folder / "manifest.json");
  const std::string signature = read_file(folder / "manifest.sig");
  Bundle bundle{folder, {}, "", sha256(manifest), {}, {}};
  for (const auto& [id, key] : trusted_keys(trust))
    if (signature.size() == kSignatureBytes && signed_by(key, signature, manifest)) bundle.key = id;
  if (bundle.key.empty())
    throw Refusal((folder / "manifest.sig").string() + " is not a trusted key's signature of " +
                  "manifest.json (trusted: " + trust.string() + ")");

  const std::string manifest_name = (folder / "manifest.json").string();
  const auto record = parse_object(manifest, manifest_name);
  if (record.value("schema_version", nlohmann::json()) != kSchemaVersion)
    throw Refusal(manifest_name + " has an unknown schema version; this program reads '1'");
  if (!record.contains("files") || !record["files"].is_object())
    throw Refusal(manifest_name + " lists no files");
  for (const auto& [name, digest] : record["files"].items()) {
    if (name.empty() || name.find('/') != std::string::npos || name[0] == '.')
      throw Refusal(manifest_name + " lists a file outside the bundle: " + name);
    std::string bytes = read_file(folder / name);
    if (digest != sha256(bytes))
      throw Refusal((folder / name).string() + " is not the file that was signed");
    bundle.files.emplace(name, std::move(bytes));
  }
  for (const auto& item : fs::directory_iterator(folder)) {
    const std::string name = item.path().filename().string();
    if (!bundle.files.contains(name) && name != "manifest.json" && name != "manifest.sig")
      throw Refusal(item.path().string() + " is not in the signed manifest");
  }
  for (const char* needed : {"controller.pt", "card.json"})
    if (!bundle.files.contains(needed)) throw Refusal(manifest_name + " lacks " + needed);

  const std::string card_name = (folder / "card.json").string();
  bundle.card = parse_object(bundle.files.at("card.json"), card_name);
  if (bundle.card.value("schema_version", nlohmann::json()) != record["schema_version"])
    throw Refusal(card_name + " has an unknown schema version");
  bundle.contract = parse_contract(bundle.card, card_name);
  return bundle;
}

}  // namespace kcpr
