// What does a program see that a pipe cannot bring about: another size, and ros2_control's answer?
//
//   probe BUNDLE TRUST    a line each: what was done, overruled, mode, then the commands
#include "ros2_control/policy_controller.cpp"

#include <cstdio>

namespace {

std::vector<std::string> names(const std::vector<kcpr::Entry>& entries) {
  std::vector<std::string> list;
  for (const auto& entry : entries) list.push_back(entry.name);
  return list;
}

void show(const char* what, const kcpr::Answer& answer) {
  std::printf("%s %d %d", what, static_cast<int>(answer.overruled), static_cast<int>(answer.mode));
  for (const float value : answer.action) std::printf(" %.9g", value);
  std::printf("\n");
}

}  // namespace

int main(int, char** words) {
  const auto bundle = kcpr::open_bundle(words[1], words[2]);
  const auto& contract = bundle.contract;
  kcpr::Options options{.period_s = contract.period_s};
  options.observation = names(contract.observation);
  options.action = names(contract.action);
  kcpr::Controller controller(bundle, options);
  std::vector<float> obs(options.observation.size(), 0.0f);
  show("good", controller.step(obs, 0.0));
  show("short", controller.step(std::span(obs).first(obs.size() - 1), 0.0));
  obs.push_back(0.0f);
  show("long", controller.step(obs, 0.0));
  show("none", controller.step({}, 0.0));

  kcpr::PolicyController plugin;
  plugin.rate = static_cast<unsigned int>(1.0 / contract.period_s);
  plugin.on_init();
  auto& parameters = plugin.get_node()->parameters;
  parameters["bundle"].text = words[1];
  parameters["trust"].text = words[2];
  for (const char* name : {"observation", "state_interfaces"})
    parameters[name].list = options.observation;
  for (const char* name : {"action", "command_interfaces"}) parameters[name].list = options.action;
  plugin.state_interfaces_.resize(options.observation.size());
  plugin.command_interfaces_.resize(options.action.size());
  if (plugin.on_configure({}) != controller_interface::CallbackReturn::SUCCESS) return 1;
  plugin.on_activate({});
  for (const double value : {0.0, std::numeric_limits<double>::quiet_NaN(), 0.0}) {
    plugin.state_interfaces_[0].value = value;
    const auto told = plugin.update({}, {});
    std::printf("ros %d 0", told == controller_interface::return_type::ERROR);
    for (const auto& command : plugin.command_interfaces_) std::printf(" %.9g", command.value);
    std::printf("\n");
  }
}
