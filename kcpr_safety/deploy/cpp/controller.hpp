// How does a robot's loop get actions out of a signed bundle, and what happens when something fails?
//
//   auto bundle = kcpr::open_bundle("my-policy", "trusted");      // signature and hashes first
//   kcpr::Controller controller(bundle, {.period_s = 0.05, .observation = names, .action = joints});
//   const auto& answer = controller.step(observation, age_s);     // once per control period
//
// The robot names its observations and actuators in its own order; anything renamed, missing, double
// or unknown is refused, and so is another control period. Then the golden answers in the file are
// repeated, and the first slow calls are made. A step never throws: an observation that is too old, an
// answer that is late, an exception or a number out of bounds gives the bundle's safe action, with a
// bit in `overruled`; the controller's state then remembers that action as the one that was given.
//
// One thread, inference mode. LibTorch allocates memory in every call, so this is soft real time: a
// late answer is noticed, not prevented, and a watchdog outside of this process has to act when
// nothing comes at all. For hard real time there is the generated controller.h, which never allocates.
#pragma once

#include "bundle.hpp"
#include "recorder.hpp"

#include <ATen/Parallel.h>
#include <torch/script.h>

#include <chrono>
#include <optional>
#include <sstream>

namespace kcpr {

/// `schema_version()` of the controllers whose `step` this program understands, oldest and newest.
inline constexpr std::int64_t kOldest = 2, kInterface = 4;

/// Why an answer is not the policy's: bits of `Answer::overruled`.
enum Overruled : std::int64_t { kStale = 1, kLate = 2, kFault = 4 };

/// Bit of `Answer::mode`: the safe action instead of an answer to the observation.
inline constexpr std::int64_t kInvalid = 4;

/// What the robot promises; every time in seconds.
struct Options {
  double period_s;
  std::vector<std::string> observation{}, action{};
  /// Oldest observation that may still be acted upon; not given: one period.
  std::optional<double> max_age_s{};
  /// Longest that a step may take; not given: one period.
  std::optional<double> deadline_s{};
  /// Newest steps that the black box keeps.
  std::size_t record = 0;
  int warm_up = 200;
  /// Off only for the test that gradients would not pile up.
  bool inference = true;
};

/// Valid until the next step.
struct Answer {
  std::vector<float> action;
  /// Predicted punishment; infinite where overruled.
  float risk;
  /// The controller's mode, as the card explains it; `kInvalid` where overruled.
  std::int64_t mode;
  std::int64_t overruled;

  /// Whether `action` is the safe one, for whatever reason.
  bool safe() const { return overruled != 0 || (mode & kInvalid) != 0; }
};

class Controller {
 public:
  Controller(const Bundle& bundle, const Options& options)
      : contract_(bundle.contract),
        options_(options),
        manifest_(bundle.manifest_sha256),
        from_robot_(wire(contract_.observation, options.observation, "observation")),
        to_robot_(wire(contract_.action, options.action, "action")),
        safe_(safe_action(bundle)),
        module_(load(bundle)),
        step_(module_.get_method("step")),
        initial_(initial_state(bundle)),
        recorder_({contract_.observation.size(), size_of(initial_), contract_.action.size()},
                  options.record) {
    if (!(std::abs(options.period_s - contract_.period_s) <= 1e-9 * contract_.period_s))
      throw Refusal("the robot's control period is " + std::to_string(options.period_s) +
                    " s, the policy's is " + std::to_string(contract_.period_s) + " s");
    max_age_s_ = options.max_age_s.value_or(contract_.period_s);
    deadline_s_ = options.deadline_s.value_or(contract_.period_s);
    if (!(max_age_s_ > 0 && deadline_s_ > 0))
      throw Refusal("the largest age and the deadline must be above 0 s");
    at::set_num_threads(1);
    obs_ = torch::zeros({1, signed_size(contract_.observation)}, torch::kFloat32);
    ordered_.resize(contract_.action.size());
    answer_.action.resize(contract_.action.size());
    prove(bundle.card);
    reset();
  }

  const Contract& contract() const { return contract_; }
  const Recorder& recorder() const { return recorder_; }
  double self_test_error() const { return self_test_error_; }

  /// A new episode: the state that the contract declares.
  void reset() {
    state_ = initial_.clone();
    tick_ = 0;
  }

  /// The action for the robot's observation (its own order), which is `age_s` seconds old.
  const Answer& step(std::span<const float> obs, double age_s) noexcept {
    const auto started = Clock::now();
    answer_.overruled = 0;
    if (!(age_s >= 0 && age_s <= max_age_s_)) answer_.overruled |= kStale;
    if (obs.size() != from_robot_.size()) {
      answer_.overruled |= kFault;
    } else {
      float* own = obs_.data_ptr<float>();
      for (std::size_t i = 0; i < obs.size(); ++i) own[i] = obs[from_robot_[i]];
    }
    const torch::Tensor before = state_;
    if (answer_.overruled == 0 && !decide()) answer_.overruled |= kFault;
    if (std::chrono::duration<double>(Clock::now() - started).count() > deadline_s_)
      answer_.overruled |= kLate;
    if (answer_.overruled != 0) overrule(before);
    recorder_.add({{tick_++, answer_.mode, answer_.overruled, age_s, answer_.risk, 0},
                   {obs_.data_ptr<float>(), from_robot_.size()},
                   {before.data_ptr<float>(), size_of(before)},
                   ordered_});
    for (std::size_t i = 0; i < ordered_.size(); ++i) answer_.action[to_robot_[i]] = ordered_[i];
    return answer_;
  }

  /// Decides on the last observation once more and forgets it. Half a millisecond before an
  /// observation is due this brings code and weights back into the caches, and the step is faster.
  void rehearse() noexcept {
    try {
      const c10::InferenceMode guard(options_.inference);
      step_({obs_, state_});
    } catch (...) {
      // The step itself will meet it, and say so.
    }
  }

  void save_recording(const std::filesystem::path& path) const { recorder_.save(path, manifest_); }

  /// How many rows of a recording this controller does not repeat to the last bit; (rows, differ).
  std::pair<std::size_t, std::size_t> replay(const std::filesystem::path& path) {
    const std::array<std::size_t, 3> sizes{from_robot_.size(), size_of(initial_), ordered_.size()};
    const Recorder recording = Recorder::load(path, manifest_, sizes);
    std::size_t differ = 0;
    for (std::size_t i = 0; i < recording.size(); ++i) {
      const auto row = recording.at(i);
      std::copy(row.obs.begin(), row.obs.end(), obs_.data_ptr<float>());
      state_ = torch::zeros_like(initial_);
      std::copy(row.state.begin(), row.state.end(), state_.data_ptr<float>());
      if (row.head.overruled != 0 || !decide()) overrule(initial_);
      const bool same = answer_.mode == row.head.mode &&
                        std::memcmp(&answer_.risk, &row.head.risk, sizeof(float)) == 0 &&
                        std::memcmp(ordered_.data(), row.action.data(),
                                    row.action.size_bytes()) == 0;
      differ += !same;
    }
    reset();
    return {recording.size(), differ};
  }

  /// One method of the file, as it is; the parity tests and the bench ask this way.
  torch::IValue ask(const std::string& method, std::vector<torch::IValue> inputs) {
    const c10::InferenceMode guard(options_.inference);
    return module_.get_method(method)(std::move(inputs));
  }

 private:
  using Clock = std::chrono::steady_clock;

  static std::int64_t signed_size(const std::vector<Entry>& entries) {
    return static_cast<std::int64_t>(entries.size());
  }
  static std::size_t size_of(const torch::Tensor& tensor) {
    return static_cast<std::size_t>(tensor.numel());
  }

  /// Contract's order -> robot's index.
  static std::vector<std::size_t> wire(const std::vector<Entry>& entries,
                                       const std::vector<std::string>& names,
                                       const std::string& side) {
    std::map<std::string, std::size_t> place;
    for (std::size_t i = 0; i < names.size(); ++i)
      if (!place.emplace(names[i], i).second)
        throw Refusal("the robot names its " + side + " '" + names[i] + "' twice");
    std::vector<std::size_t> order;
    for (const auto& entry : entries) {
      const auto found = place.find(entry.name);
      if (found == place.end())
        throw Refusal(std::find(names.begin(), names.end(), entry.name) == names.end()
                          ? "the robot names no " + side + " '" + entry.name +
                                "', which the policy needs"
                          : "the policy has more than one " + side + " '" + entry.name + "'");
      order.push_back(found->second);
      place.erase(found);
    }
    if (!place.empty())
      throw Refusal("the policy knows no " + side + " '" + place.begin()->first + "'");
    return order;
  }

  static torch::jit::Module load(const Bundle& bundle) {
    const std::string name = (bundle.folder / "controller.pt").string();
    std::istringstream bytes(bundle.files.at("controller.pt"));
    try {
      auto module = torch::jit::load(bytes, c10::kCPU);
      for (const char* method : {"step", "self_test", "contract", "schema_version"})
        if (!module.find_method(method)) throw Refusal(name + " lacks the method " + method);
      const auto version = module.get_method("schema_version")({}).toInt();
      if (version < kOldest || version > kInterface)
        throw Refusal(name + " has interface version " + std::to_string(version) +
                      "; this program knows " + std::to_string(kOldest) + " to " +
                      std::to_string(kInterface));
      return module;
    } catch (const c10::Error& error) {
      const std::string words = error.what_without_backtrace();
      throw Refusal(name + " cannot be loaded by LibTorch: " + words.substr(0, words.find('\n')));
    }
  }

  /// What the card declares: one finite number within the bounds of each actuator.
  static std::vector<float> safe_action(const Bundle& bundle) {
    const std::string name = (bundle.folder / "card.json").string();
    const auto& entries = bundle.contract.action;
    std::vector<double> values;
    try {
      bundle.card.at("assurance").at("safe_action").get_to(values);
    } catch (const nlohmann::json::exception& error) {
      throw Refusal(name + " declares no safe action: " + error.what());
    }
    if (values.size() != entries.size())
      throw Refusal(name + " declares a safe action of " + std::to_string(values.size()) +
                    " numbers for " + std::to_string(entries.size()) + " actuators");
    for (std::size_t i = 0; i < entries.size(); ++i)
      if (!(std::isfinite(values[i]) && values[i] >= entries[i].low && values[i] <= entries[i].high))
        throw Refusal(name + " declares a safe action outside of the bounds of " + entries[i].name);
    return {values.begin(), values.end()};
  }

  /// float32 [1, state], of the contract in the file, which must be the card's.
  torch::Tensor initial_state(const Bundle& bundle) {
    const auto own = parse_object(module_.get_method("contract")({}).toStringRef(), "contract()");
    for (const auto& [key, value] : bundle.card.at("contract").items())
      if (own.value(key, nlohmann::json()) != value)
        throw Refusal((bundle.folder / "controller.pt").string() + " and card.json differ in " +
                      "their contract's " + key);
    if (own.value("assurance", nlohmann::json()) != bundle.card.at("assurance"))
      throw Refusal((bundle.folder / "controller.pt").string() + " and card.json differ in " +
                    "their assurance");
    const auto values = own.at("assurance").at("initial_state").get<std::vector<float>>();
    if (values.size() < contract_.action.size())
      throw Refusal((bundle.folder / "controller.pt").string() + " has no initial state");
    return torch::tensor(values).unsqueeze(0);
  }

  /// Golden answers, then the slow first calls, on a state that nobody uses afterwards.
  void prove(const nlohmann::json& card) {
    const double tolerance = card.at("parity").at("replay_tolerance").get<double>();
    self_test_error_ = ask("self_test", {}).toDouble();
    if (!(self_test_error_ <= tolerance))
      throw Refusal("the controller does not repeat its golden answers here: it is off by " +
                    std::to_string(self_test_error_) + ", allowed is " + std::to_string(tolerance));
    state_ = initial_.clone();
    for (int i = 0; i < options_.warm_up; ++i)
      if (!decide()) throw Refusal("the controller fails when it is asked for its first action");
  }

  /// The module's step on `obs_` and `state_`; false where it throws or leaves its bounds.
  bool decide() noexcept {
    try {
      const c10::InferenceMode guard(options_.inference);
      const auto outputs = step_({obs_, state_}).toTuple();
      const torch::Tensor action = outputs->elements()[0].toTensor();
      const float* values = action.data_ptr<float>();
      for (std::size_t i = 0; i < ordered_.size(); ++i) {
        const auto& entry = contract_.action[i];
        ordered_[i] = values[i];
        if (!(values[i] >= static_cast<float>(entry.low) &&
              values[i] <= static_cast<float>(entry.high)))
          return false;
      }
      answer_.risk = outputs->elements()[1].toTensor().data_ptr<float>()[0];
      answer_.mode = outputs->elements()[2].toTensor().data_ptr<std::int64_t>()[0];
      state_ = outputs->elements()[3].toTensor();
      return true;
    } catch (...) {
      return false;
    }
  }

  /// The safe action; `before` is the state that the step began with.
  void overrule(const torch::Tensor& before) {
    std::copy(safe_.begin(), safe_.end(), ordered_.begin());
    answer_.risk = std::numeric_limits<float>::infinity();
    answer_.mode = kInvalid;
    state_ = before.clone();
    std::copy(safe_.begin(), safe_.end(),
              state_.data_ptr<float>() + size_of(state_) - safe_.size());
  }

  const Contract contract_;
  const Options options_;
  const std::string manifest_;
  const std::vector<std::size_t> from_robot_, to_robot_;
  const std::vector<float> safe_;
  torch::jit::Module module_;
  torch::jit::Method step_;
  const torch::Tensor initial_;
  Recorder recorder_;
  double max_age_s_ = 0, deadline_s_ = 0, self_test_error_ = 0;
  torch::Tensor obs_, state_;
  std::vector<float> ordered_;
  Answer answer_{};
  std::uint64_t tick_ = 0;
};

}  // namespace kcpr
