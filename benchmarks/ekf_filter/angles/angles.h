#pragma once
#include <cmath>

namespace angles {

// Into −π … π.
inline double normalize_angle(double angle) { return std::remainder(angle, 2 * M_PI); }

}  // namespace angles
