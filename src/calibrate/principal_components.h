// The principal components of a layer's keys, before and after RoPE (for the policy loki).
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "fasa/context.h"
#include "fasa/rope.h"
#include "fasa/tensor.h"

namespace fasa::calibrate {

class PrincipalComponents {
 public:
  PrincipalComponents(int64_t num_kv_heads, const RopeSpec& rope);

  // Row t of `k` is the key of position t, after RoPE; rows 0..num_rows-1 count. Keys before RoPE are got by turning
  // them back with the spec's own frequencies: scaled RoPE (YaRN and the like) is undone only roughly.
  void add(Context& context, const CacheView& k, int64_t num_rows);

  // "pca_pre" and "pca_post" -> [num_kv_heads][num_axes][head_dim]: the eigenvectors of the covariance, largest
  // eigenvalue first, each with its largest component positive. Empty if no key was added.
  std::map<std::string, std::vector<float>> bases(int64_t num_axes) const;

 private:
  struct Moments {
    double count = 0;
    std::vector<double> sum;     // [head_dim]
    std::vector<double> square;  // [head_dim][head_dim], the upper triangle
    void add(const float* key, int64_t head_dim);
    std::vector<double> covariance() const;
  };

  RopeSpec rope_;
  std::vector<Moments> pre_;   // [num_kv_heads]
  std::vector<Moments> post_;  // [num_kv_heads]
};

// Eigenvectors of the symmetric matrix a [n][n] as rows, in descending order of their eigenvalues (Jacobi's method).
std::vector<double> eigenvectors(std::vector<double> a, int64_t n);

}  // namespace fasa::calibrate
