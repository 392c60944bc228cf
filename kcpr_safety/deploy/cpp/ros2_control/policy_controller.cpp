// How would the controller sit in ros2_control? A skeleton, never built with ROS.
//
// Everything that decides is kcpr::Controller, which the tests build and run; this file only moves
// numbers, and the tests compile it against a stand-in for ROS. Parameters (all by name, in the
// robot's order):
//
//   bundle, trust     folders, as for kcpr-robot
//   observation       names as the bundle's contract has them
//   state_interfaces  the interface that each comes from, e.g. "bthigh/position"
//   action            actuator names as the contract has them
//   command_interfaces  the interface that each goes to, e.g. "bthigh/effort"
//
// Whatever commands the safe action (stale, late, out of bounds, an invalid observation) also returns
// ERROR, so that the controller manager starts this controller's fallback_controllers. Name one: a
// learned policy needs a last resort that was not learned. LibTorch allocates: soft real time only.
#include "../controller.hpp"

#include <controller_interface/controller_interface.hpp>
#include <pluginlib/class_list_macros.hpp>

#include <memory>
#include <string>
#include <vector>

namespace kcpr {

class PolicyController : public controller_interface::ControllerInterface {
  using Interfaces = controller_interface::InterfaceConfiguration;
  using Callback = controller_interface::CallbackReturn;
  using Kind = controller_interface::interface_configuration_type;

 public:
  Callback on_init() override {
    for (const char* name : {"bundle", "trust"}) auto_declare<std::string>(name, "");
    for (const char* name : {"observation", "state_interfaces", "action", "command_interfaces"})
      auto_declare<std::vector<std::string>>(name, {});
    return Callback::SUCCESS;
  }

  Interfaces command_interface_configuration() const override {
    return {Kind::INDIVIDUAL, names("command_interfaces")};
  }
  Interfaces state_interface_configuration() const override {
    return {Kind::INDIVIDUAL, names("state_interfaces")};
  }

  Callback on_configure(const rclcpp_lifecycle::State&) override {
    try {
      const auto text = [this](const char* name) {
        return get_node()->get_parameter(name).as_string();
      };
      Options options{.period_s = 1.0 / static_cast<double>(get_update_rate())};
      options.observation = names("observation");
      options.action = names("action");
      if (options.observation.size() != names("state_interfaces").size() ||
          options.action.size() != names("command_interfaces").size())
        throw Refusal("every observation and action needs one interface");
      controller_ = std::make_unique<Controller>(open_bundle(text("bundle"), text("trust")), options);
      observation_.resize(options.observation.size());
      return Callback::SUCCESS;
    } catch (const std::exception& error) {
      RCLCPP_ERROR(get_node()->get_logger(), "%s", error.what());
      return Callback::FAILURE;
    }
  }

  Callback on_activate(const rclcpp_lifecycle::State&) override {
    controller_->reset();
    return Callback::SUCCESS;
  }

  controller_interface::return_type update(const rclcpp::Time&, const rclcpp::Duration&) override {
    for (std::size_t i = 0; i < observation_.size(); ++i)
      observation_[i] = static_cast<float>(state_interfaces_[i].get_value());
    // Interfaces carry no time stamp: a hardware component that stalls must say so itself.
    const Answer& answer = controller_->step(observation_, 0.0);
    for (std::size_t i = 0; i < answer.action.size(); ++i)
      command_interfaces_[i].set_value(static_cast<double>(answer.action[i]));
    return answer.safe() ? controller_interface::return_type::ERROR
                         : controller_interface::return_type::OK;
  }

 private:
  std::vector<std::string> names(const char* parameter) const {
    return get_node()->get_parameter(parameter).as_string_array();
  }

  std::unique_ptr<Controller> controller_;
  std::vector<float> observation_;
};

}  // namespace kcpr

PLUGINLIB_EXPORT_CLASS(kcpr::PolicyController, controller_interface::ControllerInterface)
