// As much of ROS as policy_controller.cpp touches, so that the tests can compile it and see what it
// returns. It is written from ROS's documentation, and no proof that the skeleton builds there.
#pragma once

#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <vector>

#define RCLCPP_ERROR(logger, ...) std::fprintf(stderr, __VA_ARGS__)

namespace rclcpp {
struct Time {};
struct Duration {};
struct Logger {};
struct Parameter {
  std::string text;
  std::vector<std::string> list;
  std::string as_string() const { return text; }
  std::vector<std::string> as_string_array() const { return list; }
};
}  // namespace rclcpp

namespace rclcpp_lifecycle {
struct State {};
struct LifecycleNode {
  std::map<std::string, rclcpp::Parameter> parameters;
  rclcpp::Parameter get_parameter(const std::string& name) const { return parameters.at(name); }
  rclcpp::Logger get_logger() const { return {}; }
};
}  // namespace rclcpp_lifecycle

namespace controller_interface {

enum class interface_configuration_type { ALL, INDIVIDUAL, NONE };
enum class CallbackReturn { SUCCESS, FAILURE, ERROR };
enum class return_type { OK, ERROR };

struct InterfaceConfiguration {
  interface_configuration_type type;
  std::vector<std::string> names;
};

struct Interface {
  double value = 0;
  double get_value() const { return value; }
  void set_value(double told) { value = told; }
};

class ControllerInterface {
 public:
  virtual ~ControllerInterface() = default;
  virtual CallbackReturn on_init() = 0;
  virtual InterfaceConfiguration command_interface_configuration() const = 0;
  virtual InterfaceConfiguration state_interface_configuration() const = 0;
  virtual CallbackReturn on_configure(const rclcpp_lifecycle::State&) = 0;
  virtual CallbackReturn on_activate(const rclcpp_lifecycle::State&) = 0;
  virtual return_type update(const rclcpp::Time&, const rclcpp::Duration&) = 0;

  std::shared_ptr<rclcpp_lifecycle::LifecycleNode> get_node() const { return node_; }
  unsigned int get_update_rate() const { return rate; }
  template <typename T>
  void auto_declare(const std::string& name, const T&) {
    node_->parameters[name];
  }

  unsigned int rate = 0;
  std::vector<Interface> state_interfaces_, command_interfaces_;

 private:
  std::shared_ptr<rclcpp_lifecycle::LifecycleNode> node_ =
      std::make_shared<rclcpp_lifecycle::LifecycleNode>();
};

}  // namespace controller_interface
