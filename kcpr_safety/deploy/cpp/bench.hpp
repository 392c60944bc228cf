// How long does one answer take, cold and warm, when it is asked for once per control period?
//
// Every contender is called once in every period, each in a slot of its own, with sleep between: as a
// robot asks, with caches that others have used meanwhile. One that rehearses does so shortly before.
// Afterwards each runs alone, back to back. `cold` is its first call in this process.
#pragma once

#include "bundle.hpp"

#include <time.h>

#include <functional>
#include <iostream>

namespace kcpr {

struct Contender {
  std::string name;
  std::function<void()> call;
  /// What is done before its first call and not timed.
  std::function<void()> prepare = [] {};
  /// What is done shortly before every call and not timed.
  std::function<void()> rehearse = nullptr;
};

/// How long before its time a call is rehearsed.
inline constexpr std::int64_t kRehearsalNs = 500'000;

inline std::int64_t now_ns() {
  timespec time{};
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * 1'000'000'000LL + time.tv_nsec;
}

/// Sleep, and spin through the last millisecond: a late awakening is not the contender's.
inline void wait_until(std::int64_t ns) {
  const std::int64_t early = ns - 1'000'000;
  const timespec time{early / 1'000'000'000LL, early % 1'000'000'000LL};
  if (now_ns() < early) clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, nullptr);
  while (now_ns() < ns) {
  }
}

inline double time_us(const std::function<void()>& call) {
  const std::int64_t started = now_ns();
  call();
  return static_cast<double>(now_ns() - started) / 1e3;
}

/// The smallest of `times` that at least `share` of them do not exceed.
inline double percentile(std::vector<double> times, double share) {
  std::sort(times.begin(), times.end());
  const auto rank = std::ceil(share * static_cast<double>(times.size()));
  return times[static_cast<std::size_t>(std::max(rank, 1.0)) - 1];
}

/// name -> {p50_us, p99_us, p999_us, max_us, cold_us, hot_us}; a dot on stderr for each 1 %.
inline nlohmann::json bench(const std::vector<Contender>& contenders, std::size_t ticks,
                            double period_s) {
  constexpr int kWarmUp = 100, kHot = 2000;
  std::map<std::string, double> cold;
  for (const auto& contender : contenders) {
    contender.prepare();
    cold[contender.name] = time_us(contender.call);
    for (int i = 0; i < kWarmUp; ++i) contender.call();
  }
  std::map<std::string, std::vector<double>> times;
  const auto slot =
      static_cast<std::int64_t>(period_s * 1e9 / static_cast<double>(contenders.size()));
  std::int64_t next = now_ns();
  for (std::size_t tick = 0; tick < ticks; ++tick) {
    for (const auto& contender : contenders) {
      next += slot;
      if (contender.rehearse) {
        wait_until(next - kRehearsalNs);
        contender.rehearse();
      }
      wait_until(next);
      times[contender.name].push_back(time_us(contender.call));
    }
    if ((tick + 1) * 100 / ticks != tick * 100 / ticks) std::cerr << '.' << std::flush;
  }
  auto record = nlohmann::json::object();
  for (const auto& contender : contenders) {
    std::vector<double> hot;
    for (int i = 0; i < kHot; ++i) hot.push_back(time_us(contender.call));
    const auto& name = contender.name;
    const auto& own = times.at(name);
    record[name] = {{"p50_us", percentile(own, 0.5)},    {"p99_us", percentile(own, 0.99)},
                    {"p999_us", percentile(own, 0.999)}, {"max_us", percentile(own, 1.0)},
                    {"cold_us", cold.at(name)},          {"hot_us", percentile(hot, 0.5)}};
  }
  return record;
}

}  // namespace kcpr
