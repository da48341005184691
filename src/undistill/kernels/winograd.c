/* Winograd convolution F(4x4, 3x3), float32, stride 1, padding 1, forward and backward.

   y = A' [ (G w G') . (B' d B) ] A for every 6x6 tile d of the input and 4x4 tile y of the output (Lavin and Gray, 2016):
   36 multiplications a tile and a pair of channels where the direct form takes 144. All channels of a tile make it 36
   matrix products. Blocks of tiles go through all stages while they are in the cache.

   Images are (N, H, W, C). Inside, numbers lie in panels of a vector's channels: [36][channels / LANES][rows][LANES]. */

#include <stddef.h>
#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_thread_num(void) { return 0; }
#endif

/* A vector register, and how many rows by vectors of a product are held in registers. */
#if defined(__AVX512F__)
#define LANES 16
#define ROWS 8
#elif defined(__AVX__)
#define LANES 8
#define ROWS 4
#else
#define LANES 4
#define ROWS 4
#endif
#define WIDE 2
#define POINTS 36
#define GAP 16 /* floats between the panels of two points: without, a row's points would share one set of the cache */
typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))

typedef struct {
    long n, h, w, c;
} shape;

static long tiles_down(shape s) { return (s.h + 3) / 4; }
static long tiles_across(shape s) { return (s.w + 3) / 4; }
static long tiles_of(shape s) { return s.n * tiles_down(s) * tiles_across(s); }
static long apart(long channels, long rows) { return channels * rows + GAP; } /* from point to point of the panels */
static long smaller(long a, long b) { return a < b ? a : b; }

/* B' d: six rows in, six out. */
INLINE void input_side(const vec d[6], vec v[6]) {
    vec p = d[4] - 4 * d[2], q = d[3] - 4 * d[1], r = d[4] - d[2], s = 2 * (d[3] - d[1]);
    v[0] = 4 * (d[0] - d[2]) + r;
    v[1] = p + q;
    v[2] = p - q;
    v[3] = r + s;
    v[4] = r - s;
    v[5] = 4 * (d[1] - d[3]) + d[5] - d[3];
}

/* A' m: six rows in, four out. */
INLINE void output_side(const vec m[6], vec y[4]) {
    vec p = m[1] + m[2], q = m[1] - m[2], r = m[3] + m[4], s = m[3] - m[4];
    y[0] = m[0] + p + r;
    y[1] = q + 2 * s;
    y[2] = p + 4 * r;
    y[3] = q + 8 * s + m[5];
}

/* A g: four rows in, six out; carries a gradient back through output_side. */
INLINE void gradient_side(const vec g[4], vec d[6]) {
    vec p = g[0] + g[2], q = g[1] + g[3], r = g[0] + 4 * g[2], s = 2 * g[1] + 8 * g[3];
    d[0] = g[0];
    d[1] = p + q;
    d[2] = p - q;
    d[3] = r + s;
    d[4] = r - s;
    d[5] = g[3];
}

/* G w: three rows in, six out. */
INLINE void weight_side(const vec w[3], vec u[6]) {
    vec p = (w[0] + w[2]) * (-1.0f / 6), q = w[1] * (1.0f / 6);
    vec r = w[0] * (1.0f / 24) + w[2] * (1.0f / 6), s = w[1] * (1.0f / 12);
    u[0] = w[0] * 0.25f;
    u[1] = p - q;
    u[2] = p + q;
    u[3] = r + s;
    u[4] = r - s;
    u[5] = w[2];
}

/* G' u: six rows in, three out; carries a gradient back through weight_side. */
INLINE void weight_gradient_side(const vec u[6], vec w[3]) {
    vec p = (u[1] + u[2]) * (-1.0f / 6), q = (u[2] - u[1]) * (1.0f / 6), r = u[3] + u[4], s = u[3] - u[4];
    w[0] = u[0] * 0.25f + p + r * (1.0f / 24);
    w[1] = q + s * (1.0f / 12);
    w[2] = p + r * (1.0f / 6) + u[5];
}

/* Ask for the pixels of the tile to the right while this one is computed: processors do not foresee tiles. */
INLINE void fetch_next(const float *image, shape s, long top, long left, long c, int rows, int write) {
    if (c % 16) return; /* it is in the line that is on its way */
    for (int i = 0; i < rows; i++)
        for (int j = 4; j < 8; j++) {
            const float *pixel = image + ((top + i) * s.w + left + j) * s.c + c;
            if (write)
                __builtin_prefetch(pixel, 1);
            else
                __builtin_prefetch(pixel, 0);
        }
}

/* Put tile number `tile` of an image into row `row` of the panels: 6x6 pixels of the input, one around the tile. */
INLINE void put_input(const float *x, shape s, long tile, float *panels, long rows, long row) {
    long across = tiles_across(s), down = tiles_down(s);
    long left = tile % across * 4 - 1, top = tile / across % down * 4 - 1;
    const float *image = x + tile / (across * down) * s.h * s.w * s.c;
    int inside = left >= 0 && top >= 0 && left + 6 <= s.w && top + 6 <= s.h;
    for (long c = 0; c < s.c; c += LANES) {
        vec half[6][6], column[6];
        fetch_next(image, s, top, left + 1, c, 6, 0);
        for (int j = 0; j < 6; j++) {
            for (int i = 0; i < 6; i++) {
                long a = top + i, b = left + j;
                column[i] = inside || (a >= 0 && a < s.h && b >= 0 && b < s.w)
                                ? *(const vec *)(image + (a * s.w + b) * s.c + c)
                                : (vec){0};
            }
            vec out[6];
            input_side(column, out);
            for (int i = 0; i < 6; i++) half[i][j] = out[i];
        }
        for (int i = 0; i < 6; i++) {
            vec out[6];
            input_side(half[i], out);
            for (int j = 0; j < 6; j++)
                *(vec *)(panels + (i * 6 + j) * apart(s.c, rows) + c * rows + row * LANES) = out[j];
        }
    }
}

/* The same for the 4x4 pixels of a gradient. */
INLINE void put_gradient(const float *g, shape s, long tile, float *panels, long rows, long row) {
    long across = tiles_across(s), down = tiles_down(s);
    long left = tile % across * 4, top = tile / across % down * 4;
    const float *image = g + tile / (across * down) * s.h * s.w * s.c;
    for (long c = 0; c < s.c; c += LANES) {
        vec half[6][4], column[4];
        fetch_next(image, s, top, left, c, 4, 0);
        for (int j = 0; j < 4; j++) {
            for (int i = 0; i < 4; i++) {
                long a = top + i, b = left + j;
                column[i] = a < s.h && b < s.w ? *(const vec *)(image + (a * s.w + b) * s.c + c) : (vec){0};
            }
            vec out[6];
            gradient_side(column, out);
            for (int i = 0; i < 6; i++) half[i][j] = out[i];
        }
        for (int i = 0; i < 6; i++) {
            vec out[6];
            gradient_side(half[i], out);
            for (int j = 0; j < 6; j++)
                *(vec *)(panels + (i * 6 + j) * apart(s.c, rows) + c * rows + row * LANES) = out[j];
        }
    }
}

/* Take a tile of the output out of the panels. */
INLINE void take_output(float *y, const float *bias, shape s, long tile, const float *panels, long rows, long row) {
    long across = tiles_across(s), down = tiles_down(s);
    long left = tile % across * 4, top = tile / across % down * 4;
    float *image = y + tile / (across * down) * s.h * s.w * s.c;
    long high = smaller(4, s.h - top), wide = smaller(4, s.w - left);
    for (long c = 0; c < s.c; c += LANES) {
        vec half[4][6], column[6];
        fetch_next(image, s, top, left, c, 4, 1);
        for (int j = 0; j < 6; j++) {
            for (int i = 0; i < 6; i++)
                column[i] = *(const vec *)(panels + (i * 6 + j) * apart(s.c, rows) + c * rows + row * LANES);
            vec out[4];
            output_side(column, out);
            for (int i = 0; i < 4; i++) half[i][j] = out[i];
        }
        vec shift = bias ? *(const vec *)(bias + c) : (vec){0};
        for (int i = 0; i < 4; i++) {
            if (i >= high) break;
            vec out[4];
            output_side(half[i], out);
            for (int j = 0; j < 4; j++)
                if (j < wide) *(vec *)(image + ((top + i) * s.w + left + j) * s.c + c) = out[j] + shift;
        }
    }
}

/* c[r][v] (+)= sum over outer and inner of a * b: ROWS rows by `wide` vectors, all sums in registers. */
INLINE void multiply(int wide, const float *a, long a_row, long a_inner, long a_outer, long inner, long outer,
                     const float *b, long b_wide, float *c, long c_row, long c_wide, int add) {
    vec sum[ROWS][WIDE];
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < wide; v++) sum[r][v] = add ? *(vec *)(c + r * c_row + v * c_wide) : (vec){0};
    for (long o = 0; o < outer; o++, a += a_outer)
#pragma GCC unroll 2 /* as many as GCC keeps in registers without moving them about */
        for (long k = 0; k < inner; k++, b += LANES) {
            vec right[WIDE];
            for (int v = 0; v < wide; v++) right[v] = *(const vec *)(b + v * b_wide);
            for (int r = 0; r < ROWS; r++) {
                float left = a[r * a_row + k * a_inner];
                for (int v = 0; v < wide; v++) sum[r][v] += left * right[v];
            }
        }
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < wide; v++) *(vec *)(c + r * c_row + v * c_wide) = sum[r][v];
}

/* M = V U at one point: V [c / LANES][rows][LANES], U [k / LANES][c][LANES], M [k / LANES][rows][LANES]. */
static void product(const float *v, const float *u, float *m, long rows, long c, long k) {
    for (long b = 0; b < k;) {
        int wide = b + WIDE * LANES <= k ? WIDE : 1;
        for (long r = 0; r < rows; r += ROWS) {
            const float *a = v + r * LANES, *right = u + b * c;
            float *out = m + b * rows + r * LANES;
            if (wide == WIDE)
                multiply(WIDE, a, LANES, 1, rows * LANES, LANES, c / LANES, right, c * LANES, out, LANES, rows * LANES, 0);
            else
                multiply(1, a, LANES, 1, rows * LANES, LANES, c / LANES, right, c * LANES, out, LANES, rows * LANES, 0);
        }
        b += wide * LANES;
    }
}

/* U (+)= V' D at one point: V [c / LANES][rows][LANES], D [k / LANES][rows][LANES], U [k / LANES][c][LANES]. */
static void outer_product(const float *v, const float *d, float *u, long rows, long c, long k, int add) {
    for (long b = 0; b < k;) {
        int wide = b + WIDE * LANES <= k ? WIDE : 1;
        for (long a = 0; a < c; a += ROWS) {
            const float *left = v + a / LANES * LANES * rows + a % LANES, *right = d + b * rows;
            float *out = u + b * c + a * LANES;
            if (wide == WIDE)
                multiply(WIDE, left, 1, LANES, 0, rows, 1, right, rows * LANES, out, LANES, c * LANES, add);
            else
                multiply(1, left, 1, LANES, 0, rows, 1, right, rows * LANES, out, LANES, c * LANES, add);
        }
        b += wide * LANES;
    }
}

int lanes(void) { return LANES; }

/* Weights w [3][3][k / LANES][c][LANES] to u [36][k / LANES][c][LANES]; `size` is c * k. */
void transform_weight(const float *w, float *u, long size, int threads) {
#pragma omp parallel for num_threads(threads)
    for (long at = 0; at < size; at += LANES) {
        vec half[6][3], column[3], out[6];
        for (int j = 0; j < 3; j++) {
            for (int i = 0; i < 3; i++) column[i] = *(const vec *)(w + (i * 3 + j) * size + at);
            weight_side(column, out);
            for (int i = 0; i < 6; i++) half[i][j] = out[i];
        }
        for (int i = 0; i < 6; i++) {
            weight_side(half[i], out);
            for (int j = 0; j < 6; j++) *(vec *)(u + (i * 6 + j) * size + at) = out[j];
        }
    }
}

/* The gradient back: the sum of `parts` of du, each `next` floats after the other, to dw, laid out as w is. */
static void transform_weight_back(const float *du, long next, int parts, float *dw, long size) {
#pragma omp for
    for (long at = 0; at < size; at += LANES) {
        vec half[3][6], column[6], out[3];
        for (int j = 0; j < 6; j++) {
            for (int i = 0; i < 6; i++) {
                const float *from = du + (i * 6 + j) * size + at;
                column[i] = *(const vec *)from;
                for (int part = 1; part < parts; part++) column[i] += *(const vec *)(from + part * next);
            }
            weight_gradient_side(column, out);
            for (int i = 0; i < 3; i++) half[i][j] = out[i];
        }
        for (int i = 0; i < 3; i++) {
            weight_gradient_side(half[i], out);
            for (int j = 0; j < 3; j++) *(vec *)(dw + (i * 3 + j) * size + at) = out[j];
        }
    }
}

/* y = conv(x, w) + bias with u made of w. `block` tiles (a multiple of 8) at a time and thread; scratch holds
   36 * (block * (c + k) + 32) floats a thread. bias may be NULL. */
void convolve(const float *x, const float *u, const float *bias, float *y, float *scratch, long n, long h, long w,
              long c, long k, long block, int threads) {
    shape in = {n, h, w, c}, out = {n, h, w, k};
    long tiles = tiles_of(in);
#pragma omp parallel num_threads(threads)
    {
        float *v = scratch + omp_get_thread_num() * POINTS * (block * (c + k) + 2 * GAP), *m = v + POINTS * apart(c, block);
#pragma omp for schedule(dynamic)
        for (long first = 0; first < tiles; first += block) {
            long rows = smaller(block, (tiles - first + ROWS - 1) / ROWS * ROWS), real = smaller(rows, tiles - first);
            for (long r = 0; r < rows; r++) put_input(x, in, smaller(first + r, tiles - 1), v, rows, r);
            for (int p = 0; p < POINTS; p++)
                product(v + p * apart(c, rows), u + p * c * k, m + p * apart(k, rows), rows, c, k);
            for (long r = 0; r < real; r++) take_output(y, bias, out, first + r, m, rows, r);
        }
    }
}

/* dw [3][3][k / LANES][c][LANES] of conv(x, w) where dy is the gradient of its output. Each thread sums over tiles of its own, so that
   none waits for another; scratch holds 36 * (block * (c + k) + c * k + 32) floats a thread. */
void weight_gradient(const float *x, const float *dy, float *dw, float *scratch, long n, long h, long w, long c,
                     long k, long block, int threads) {
    shape in = {n, h, w, c}, out = {n, h, w, k};
    long tiles = tiles_of(in), share = tiles / threads + 1, size = POINTS * (block * (c + k) + c * k + 2 * GAP);
    int parts = (tiles + share - 1) / share;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int part = 0; part < parts; part++) {
            float *du = scratch + part * size, *v = du + POINTS * c * k, *d = v + POINTS * apart(c, block);
            long begin = part * share, end = smaller(tiles, begin + share);
            for (long first = begin; first < end; first += block) {
                long rows = smaller(block, end - first);
                for (long r = 0; r < rows; r++) {
                    put_input(x, in, first + r, v, rows, r);
                    put_gradient(dy, out, first + r, d, rows, r);
                }
                for (int p = 0; p < POINTS; p++)
                    outer_product(v + p * apart(c, rows), d + p * apart(k, rows), du + p * c * k, rows, c, k, first > begin);
            }
        }
        transform_weight_back(scratch, size, parts, dw, c * k);
    }
}
