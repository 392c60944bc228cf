// What did the controller see and answer, so that it can be repeated bit for bit?
//
// A ring of the newest steps, allocated once. The file: magic, manifest's SHA-256 (64 hex digits),
// uint32 observation, state and action sizes, uint64 count, then `count` rows, oldest first, each
// Head | observation | state before the step | action, in native byte order.
#pragma once

#include "bundle.hpp"

#include <cstring>
#include <span>

namespace kcpr {

/// 100,000 steps of a robot with 10,000 numbers.
inline constexpr std::uintmax_t kMaxRecordingBytes = 4ull << 30;

class Recorder {
 public:
  /// The part of a row that has a fixed size.
  struct Head {
    std::uint64_t tick;
    std::int64_t mode;
    std::int64_t overruled;
    double age_s;
    float risk;
    std::uint32_t unused;
  };
  struct Row {
    Head head;
    std::span<const float> obs, state, action;
  };

  Recorder(std::array<std::size_t, 3> sizes, std::size_t capacity)
      : sizes_(sizes),
        stride_(sizeof(Head) + sizeof(float) * (sizes[0] + sizes[1] + sizes[2])),
        capacity_(capacity),
        ring_(stride_ * capacity, '\0') {}

  void add(const Row& row) {
    if (capacity_ == 0) return;
    char* place = ring_.data() + stride_ * (count_++ % capacity_);
    std::memcpy(place, &row.head, sizeof(Head));
    place += sizeof(Head);
    for (const auto part : {row.obs, row.state, row.action}) {
      std::memcpy(place, part.data(), part.size_bytes());
      place += part.size_bytes();
    }
  }

  std::size_t size() const { return std::min(count_, capacity_); }

  /// Row `i`, the oldest first.
  Row at(std::size_t i) const {
    const std::size_t first = count_ > capacity_ ? count_ % capacity_ : 0;
    const char* place = ring_.data() + stride_ * ((first + i) % capacity_);
    Row row{};
    std::memcpy(&row.head, place, sizeof(Head));
    const float* floats = reinterpret_cast<const float*>(place + sizeof(Head));
    row.obs = {floats, sizes_[0]};
    row.state = {floats + sizes_[0], sizes_[1]};
    row.action = {floats + sizes_[0] + sizes_[1], sizes_[2]};
    return row;
  }

  /// Refuses a path that nothing can be saved to; what is there already is left as it is.
  static void check(const std::filesystem::path& path) {
    if (!std::ofstream(path, std::ios::binary | std::ios::app))
      throw Refusal(path.string() + " cannot be written");
  }

  void save(const std::filesystem::path& path, const std::string& manifest_sha256) const {
    std::ofstream stream(path, std::ios::binary | std::ios::trunc);
    stream.write(kMagic, sizeof(kMagic) - 1);
    stream.write(manifest_sha256.data(), kDigest);
    for (const std::size_t size : sizes_) put(stream, static_cast<std::uint32_t>(size));
    put(stream, static_cast<std::uint64_t>(size()));
    const std::size_t first = count_ > capacity_ ? count_ % capacity_ : 0;
    for (std::size_t i = 0; i < size(); ++i)
      stream.write(ring_.data() + stride_ * ((first + i) % capacity_),
                   static_cast<std::streamsize>(stride_));
    if (!stream.flush()) throw Refusal(path.string() + " cannot be written");
  }

  /// Inverse of `save`; a recording of another bundle is refused.
  static Recorder load(const std::filesystem::path& path, const std::string& manifest_sha256,
                       std::array<std::size_t, 3> sizes) {
    std::string bytes = read_file(path, kMaxRecordingBytes);
    const std::size_t header = sizeof(kMagic) - 1 + kDigest + 3 * 4 + 8;
    if (bytes.size() < header || bytes.compare(0, sizeof(kMagic) - 1, kMagic) != 0)
      throw Refusal(path.string() + " is no recording of this program");
    if (bytes.compare(sizeof(kMagic) - 1, kDigest, manifest_sha256) != 0)
      throw Refusal(path.string() + " was recorded with another bundle");
    const char* place = bytes.data() + sizeof(kMagic) - 1 + kDigest;
    for (const std::size_t size : sizes)
      if (take<std::uint32_t>(place) != size)
        throw Refusal(path.string() + " does not have the sizes of its bundle");
    const auto count = take<std::uint64_t>(place);
    Recorder recorder(sizes, 0);
    if (count != (bytes.size() - header) / recorder.stride_ ||
        (bytes.size() - header) % recorder.stride_ != 0)
      throw Refusal(path.string() + " is cut short or damaged");
    recorder.capacity_ = recorder.count_ = count;
    recorder.ring_ = std::move(bytes.erase(0, header));
    return recorder;
  }

 private:
  static constexpr char kMagic[] = "KCPRBBX1";
  static constexpr std::size_t kDigest = 64;

  template <typename T>
  static void put(std::ofstream& stream, T value) {
    stream.write(reinterpret_cast<const char*>(&value), sizeof value);
  }
  template <typename T>
  static T take(const char*& place) {
    T value;
    std::memcpy(&value, place, sizeof value);
    place += sizeof value;
    return value;
  }

  std::array<std::size_t, 3> sizes_;
  std::size_t stride_, capacity_, count_ = 0;
  std::string ring_;
};

}  // namespace kcpr
