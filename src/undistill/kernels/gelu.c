/* GELU, x times the share of a normal distribution below x, and its derivative; float32.

   With a = |x|, f = exp(-a a / 2) and the tail T = f P(1 / (1 + 0.35 a)), P a polynomial (relative error 3e-8),
   gelu(x) = max(x, 0) - a T, and its derivative is 1 - s above 0 and s below, where s = T - a f / sqrt(2 pi).
   No conditions: compilers make branches of them instead of vectors. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define FAR 0x41400000 /* the bits of 12: from here on the tail is nothing beside anything, but a normal number */

/* The smaller of |x| and 12, which is 12 for what is not a number. */
INLINE float distance(float x) {
    int32_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits &= INT32_MAX;
    bits = bits < FAR ? bits : FAR;
    memcpy(&x, &bits, sizeof bits);
    return x;
}

/* exp(-a a / 2): 2 to the power of a whole number, times the exponential of a remainder of at most log(2) / 2. */
INLINE float bell(float a) {
    float v = a * a * 0.5f, power;
    int32_t n = (int32_t)(v * 1.44269504f + 0.5f), bits = (127 - n) << 23;
    float r = v - n * 0.693145752f - n * 1.42860677e-6f;
    memcpy(&power, &bits, sizeof power);
    float sum = 1.3888889e-3f - r * 1.9841270e-4f;
    sum = 8.3333333e-3f - r * sum;
    sum = 4.1666667e-2f - r * sum;
    sum = 1.6666667e-1f - r * sum;
    sum = 0.5f - r * sum;
    sum = 1.0f - r * sum;
    return (1.0f - r * sum) * power;
}

/* T of |x|; not a number where x is none. */
INLINE float tail(float x, float bell) {
    float t = 1 / (1 + 0.35f * fabsf(x));
    float sum = 0.14376589f - t * 0.029104432f;
    sum = -0.25528009f + t * sum;
    sum = 0.15866673f + t * sum;
    sum = -0.022751593f + t * sum;
    sum = 0.10535208f + t * sum;
    sum = 0.11987358f + t * sum;
    sum = 0.13985606f + t * sum;
    sum = 0.13962176f + t * sum;
    return t * sum * bell;
}

void gelu(const float *x, float *y, long size, int threads) {
#pragma omp parallel for simd num_threads(threads) schedule(static)
    for (long i = 0; i < size; i++) {
        float a = distance(x[i]);
        y[i] = (x[i] + fabsf(x[i])) * 0.5f - a * tail(x[i], bell(a));
    }
}

void gelu_backward(const float *dy, const float *x, float *dx, long size, int threads) {
#pragma omp parallel for simd num_threads(threads) schedule(static)
    for (long i = 0; i < size; i++) {
        float a = distance(x[i]), f = bell(a), s = tail(x[i], f) - a * f * 0.39894228f;
        dx[i] = dy[i] * (0.5f + copysignf(0.5f - s, x[i]));
    }
}
