/* The largest of each 2x2 pixels, float32, images (N, H, W, C); a last odd row or column counts for nothing. */

#include <stdint.h>
#include <string.h>

/* y (N, H / 2, W / 2, C), and in `which` the place of each: 0 and 1 above, 2 and 3 below. */
void max_pool(const float *x, float *y, uint8_t *which, long n, long h, long w, long c, int threads) {
    long down = h / 2, across = w / 2;
#pragma omp parallel for num_threads(threads)
    for (long row = 0; row < n * down; row++)
        for (long col = 0; col < across; col++) {
            const float *pixel = x + ((row / down * h + row % down * 2) * w + col * 2) * c;
            const long next[4] = {0, c, w * c, w * c + c};
            float *out = y + (row * across + col) * c;
            uint8_t *place = which + (row * across + col) * c;
#pragma omp simd
            for (long i = 0; i < c; i++) {
                float most = pixel[i];
                int at = 0;
                for (int k = 1; k < 4; k++) {
                    float value = pixel[next[k] + i];
                    int more = value > most || value != value; /* not a number beats all */
                    most = more ? value : most;
                    at = more ? k : at;
                }
                out[i] = most;
                place[i] = (uint8_t)at;
            }
        }
}

/* dx (N, H, W, C): dy where `which` says, else 0. */
void max_pool_backward(const float *dy, const uint8_t *which, float *dx, long n, long h, long w, long c, int threads) {
    long down = h / 2, across = w / 2, rows = (h + 1) / 2;
#pragma omp parallel for num_threads(threads)
    for (long row = 0; row < n * rows; row++) {
        long image = row / rows, top = row % rows;
        float *line = dx + (image * h + top * 2) * w * c;
        if (top == down) {
            memset(line, 0, sizeof(float) * w * c);
            continue;
        }
        for (long col = 0; col < across; col++) {
            const float *from = dy + ((image * down + top) * across + col) * c;
            const uint8_t *place = which + ((image * down + top) * across + col) * c;
            float *to = line + col * 2 * c;
#pragma omp simd
            for (long i = 0; i < c; i++) {
                float g = from[i];
                int at = place[i];
                to[i] = at == 0 ? g : 0;
                to[c + i] = at == 1 ? g : 0;
                to[w * c + i] = at == 2 ? g : 0;
                to[w * c + c + i] = at == 3 ? g : 0;
            }
        }
        if (w % 2) {
            memset(line + (w - 1) * c, 0, sizeof(float) * c);
            memset(line + (2 * w - 1) * c, 0, sizeof(float) * c);
        }
    }
}
