#include "src/calibrate/principal_components.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "src/core/dtype.h"

namespace fasa::calibrate {

PrincipalComponents::PrincipalComponents(int64_t num_kv_heads, const RopeSpec& rope)
    : rope_(rope), pre_(static_cast<size_t>(num_kv_heads)), post_(static_cast<size_t>(num_kv_heads)) {
  check(rope);
  for (auto* list : {&pre_, &post_}) {
    for (Moments& m : *list) {
      m.sum.resize(static_cast<size_t>(rope.head_dim));
      m.square.resize(static_cast<size_t>(rope.head_dim) * static_cast<size_t>(rope.head_dim));
    }
  }
}

void PrincipalComponents::Moments::add(const float* key, int64_t head_dim) {
  count += 1;
  for (int64_t i = 0; i < head_dim; ++i) {
    const auto x = static_cast<double>(key[i]);
    sum[i] += x;
    for (int64_t j = i; j < head_dim; ++j) square[i * head_dim + j] += x * static_cast<double>(key[j]);
  }
}

std::vector<double> PrincipalComponents::Moments::covariance() const {
  const auto n = static_cast<int64_t>(sum.size());
  std::vector<double> result(square.size());
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = i; j < n; ++j) {
      result[i * n + j] = result[j * n + i] = square[i * n + j] / count - sum[i] / count * (sum[j] / count);
    }
  }
  return result;
}

void PrincipalComponents::add(Context& context, const CacheView& k, int64_t num_rows) {
  const int64_t head_dim = rope_.head_dim;
  context.parallel_for(static_cast<int64_t>(post_.size()), [&](int64_t g, int /*worker*/) {
    std::vector<float> key(static_cast<size_t>(head_dim));
    for (int64_t row = 0; row < num_rows; ++row) {
      for (int64_t d = 0; d < head_dim; ++d) key[d] = load_value(k.dtype, k.at(row, g), d);
      post_[g].add(key.data(), head_dim);
      rope_rotate(rope_, -static_cast<double>(row), key.data());
      pre_[g].add(key.data(), head_dim);
    }
  });
}

std::map<std::string, std::vector<float>> PrincipalComponents::bases(int64_t num_axes) const {
  std::map<std::string, std::vector<float>> result;
  if (post_.front().count == 0) return result;
  const int64_t n = rope_.head_dim;
  for (const auto& [name, list] : {std::pair{"pca_pre", &pre_}, std::pair{"pca_post", &post_}}) {
    std::vector<float>& basis = result[name];
    for (const Moments& moments : *list) {
      const std::vector<double> axes = eigenvectors(moments.covariance(), n);
      for (int64_t a = 0; a < num_axes; ++a) {
        const double* axis = axes.data() + a * n;
        const double* largest =
            std::max_element(axis, axis + n, [](double x, double y) { return std::abs(x) < std::abs(y); });
        const double sign = *largest < 0 ? -1.0 : 1.0;
        for (int64_t d = 0; d < n; ++d) basis.push_back(static_cast<float>(sign * axis[d]));
      }
    }
  }
  return result;
}

std::vector<double> eigenvectors(std::vector<double> a, int64_t n) {
  constexpr int kMaxSweeps = 50;  // it converges quadratically: 6 to 10 are usual
  std::vector<double> v(static_cast<size_t>(n * n), 0.0);
  for (int64_t i = 0; i < n; ++i) v[i * n + i] = 1.0;
  double norm = 0;
  for (const double x : a) norm += x * x;
  for (int sweep = 0; sweep < kMaxSweeps; ++sweep) {
    double off = 0;
    for (int64_t p = 0; p < n; ++p) {
      for (int64_t q = p + 1; q < n; ++q) off += a[p * n + q] * a[p * n + q];
    }
    if (off <= 1e-24 * norm) break;
    for (int64_t p = 0; p < n; ++p) {
      for (int64_t q = p + 1; q < n; ++q) {
        const double apq = a[p * n + q];
        if (apq == 0) continue;
        const double theta = (a[q * n + q] - a[p * n + p]) / (2 * apq);
        const double t = std::copysign(1.0, theta) / (std::abs(theta) + std::hypot(theta, 1.0));
        const double c = 1 / std::hypot(t, 1.0);
        const double s = t * c;
        const auto turn = [c, s](double& x, double& y) {
          const double x0 = x;
          x = c * x0 - s * y;
          y = s * x0 + c * y;
        };
        for (int64_t i = 0; i < n; ++i) turn(a[i * n + p], a[i * n + q]);
        for (int64_t i = 0; i < n; ++i) turn(a[p * n + i], a[q * n + i]);
        for (int64_t i = 0; i < n; ++i) turn(v[p * n + i], v[q * n + i]);
      }
    }
  }
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, [&](int64_t x, int64_t y) { return a[x * n + x] > a[y * n + y]; });
  std::vector<double> sorted;
  sorted.reserve(v.size());
  for (const int64_t i : order) sorted.insert(sorted.end(), v.begin() + i * n, v.begin() + (i + 1) * n);
  return sorted;
}

}  // namespace fasa::calibrate
