// As much of pluginlib as policy_controller.cpp touches.
#pragma once

#include <type_traits>

#define PLUGINLIB_EXPORT_CLASS(own, base) static_assert(std::is_base_of_v<base, own>);
