/* Expand and reduce on a CPU: each entry is read and written once, its group index stays in the cache.

   Invariant: the numbers are those of gpart/ops/reference.py bit for bit: every float operation is its, in its order, so
   this is to be compiled without contraction to fused multiply-adds.

   gpart/ops/cpu.py compiles this and is the only one that calls it.

   A block's group indices come from one of three places: stored in two bytes, in four, or the scheme's arithmetic
   (gpart/partition.py). "made" is Partition.constants() there: D, d, 2^k - 1, the two shifts, factor and addend of each
   round; unsigned numbers that wrap around and are then masked are arithmetic mod 2^k. */

#include <stdint.h>
#include <string.h>

enum { BLOCK = 1024 }; /* entries whose indices and updates lie in the first-level cache */

#define MIX(TYPE, NAME)                                                                                                \
    static inline TYPE NAME(TYPE x, const TYPE *factor, const TYPE *addend, TYPE mask, TYPE half, TYPE third)          \
    {                                                                                                                  \
        for (int r = 0; r < 6; r++) {                                                                                  \
            x = (x * factor[r] + addend[r]) & mask;                                                                    \
            x ^= x >> (r % 2 ? third : half);                                                                          \
        }                                                                                                              \
        return x;                                                                                                      \
    }

/* pi(first) .. pi(first + count - 1). Positions that are outside are gathered, so that walking them fills whole vectors. */
#define PERMUTED(TYPE, NAME, MIXED)                                                                                    \
    static void NAME(TYPE *restrict out, const uint64_t *made, TYPE first, int count)                                  \
    {                                                                                                                  \
        const TYPE size = (TYPE)made[0], mask = (TYPE)made[2], half = (TYPE)made[3], third = (TYPE)made[4];            \
        TYPE factor[6], addend[6], x[BLOCK];                                                                           \
        int outside[BLOCK], left = 0;                                                                                  \
        for (int r = 0; r < 6; r++) {                                                                                  \
            factor[r] = (TYPE)made[5 + 2 * r];                                                                         \
            addend[r] = (TYPE)made[6 + 2 * r];                                                                         \
        }                                                                                                              \
        for (int i = 0; i < count; i++)                                                                                \
            out[i] = MIXED(first + (TYPE)i, factor, addend, mask, half, third);                                        \
        for (int i = 0; i < count; i++) {                                                                              \
            outside[left] = i;                                                                                         \
            left += out[i] >= size;                                                                                    \
        }                                                                                                              \
        while (left) {                                                                                                 \
            int walked = left;                                                                                         \
            left = 0;                                                                                                  \
            for (int j = 0; j < walked; j++)                                                                           \
                x[j] = MIXED(out[outside[j]], factor, addend, mask, half, third);                                      \
            for (int j = 0; j < walked; j++) {                                                                         \
                int i = outside[j];                                                                                    \
                out[i] = x[j];                                                                                         \
                outside[left] = i;                                                                                     \
                left += x[j] >= size;                                                                                  \
            }                                                                                                          \
        }                                                                                                              \
    }

MIX(uint32_t, mix32)
MIX(uint64_t, mix64)
PERMUTED(uint32_t, permuted32, mix32)
PERMUTED(uint64_t, permuted64, mix64)

static void computed(uint32_t *restrict out, const uint64_t *made, uint64_t first, int count)
{
    const uint64_t d = made[1];
    if (made[0] >> 31) {
        uint64_t x[BLOCK];
        permuted64(x, made, first, count);
        for (int i = 0; i < count; i++)
            out[i] = (uint32_t)(x[i] % d);
        return;
    }
    /* Division by a multiplication: x and d are below 2^31, so the quotient is at most one too small, where d divides x. */
    const double inverse = 1.0 / (double)d;
    const int32_t divisor = (int32_t)d;
    permuted32(out, made, (uint32_t)first, count);
    for (int i = 0; i < count; i++) {
        int32_t x = (int32_t)out[i], rest = x - (int32_t)((double)x * inverse) * divisor;
        out[i] = (uint32_t)(rest >= divisor ? rest - divisor : rest);
    }
}

/* The indices of one block: where they are stored, or in the scratch given, of four bytes each then. */
static const void *numbers(
    uint32_t *scratch, const void *stored, int width, const uint64_t *made, int64_t start, int64_t first, int count)
{
    if (stored)
        return (const char *)stored + first * width;
    computed(scratch, made, (uint64_t)(start + first), count);
    return scratch;
}

/* A loop over a block by the width of its numbers; a copy of them to one width takes a third of an operation. */
#define BY_NUMBER(width, numbers, loop)                                                                                \
    do {                                                                                                               \
        if ((width) == 2) {                                                                                            \
            const uint16_t *number = (numbers);                                                                        \
            loop                                                                                                       \
        } else {                                                                                                       \
            const uint32_t *number = (numbers);                                                                        \
            loop                                                                                                       \
        }                                                                                                              \
    } while (0)

static inline float from_bfloat16(uint16_t bits)
{
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

static inline uint16_t to_bfloat16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    /* Half of the last place that is kept, less one where that place is even already: nearest, ties to even. */
    return value != value ? 0x7FC0 : (uint16_t)((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

static inline int least(int64_t left) { return left < BLOCK ? (int)left : BLOCK; }

/* out[i] = base[i] + scaled[group(i)], the update times keep[i] and boost where there is a mask. */
void gpart_expand(
    void *out, const void *base, int half, const float *scaled, const void *stored, int width, const uint64_t *made,
    int64_t start, int64_t count, const uint8_t *keep, double boost, int threads)
{
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t first = 0; first < count; first += BLOCK) {
        uint32_t scratch[BLOCK];
        float update[BLOCK];
        int n = least(count - first);
        const void *found = numbers(scratch, stored, width, made, start, first, n);
        if (!half && !keep) { /* at once: by way of a buffer it takes a quarter longer */
            float *to = (float *)out + first;
            const float *from = (const float *)base + first;
            BY_NUMBER(width, found, for (int i = 0; i < n; i++) to[i] = scaled[number[i]] + from[i];);
            continue;
        }
        BY_NUMBER(width, found, for (int i = 0; i < n; i++) update[i] = scaled[number[i]];);
        if (keep)
            for (int i = 0; i < n; i++)
                update[i] = update[i] * (float)keep[first + i] * (float)boost;
        if (half) {
            uint16_t *to = (uint16_t *)out + first;
            const uint16_t *from = (const uint16_t *)base + first;
            for (int i = 0; i < n; i++)
                to[i] = to_bfloat16(update[i] + from_bfloat16(from[i]));
        } else {
            float *to = (float *)out + first;
            const float *from = (const float *)base + first;
            for (int i = 0; i < n; i++)
                to[i] = update[i] + from[i];
        }
    }
}

/* Adds the values of first .. last - 1 to one row of sums. */
#define ADD_TO_ROW(TYPE, NAME)                                                                                         \
    static void NAME(                                                                                                  \
        TYPE *sums, const void *values, int half, const void *stored, int width, const uint64_t *made, int64_t start,  \
        int64_t first, int64_t last, const uint8_t *keep, double boost)                                                \
    {                                                                                                                  \
        uint32_t scratch[BLOCK];                                                                                          \
        TYPE value[BLOCK];                                                                                             \
        for (; first < last; first += BLOCK) {                                                                         \
            const int n = least(last - first);                                                                         \
            const void *found = numbers(scratch, stored, width, made, start, first, n);                                   \
            const float *from = (const float *)values + first;                                                         \
            if (!half && !keep) {                                                                                      \
                BY_NUMBER(width, found, for (int i = 0; i < n; i++) sums[number[i]] += (TYPE)from[i];);                \
                continue;                                                                                              \
            }                                                                                                          \
            for (int i = 0; i < n; i++)                                                                                \
                value[i] = (TYPE)(half ? from_bfloat16(((const uint16_t *)values)[first + i]) : from[i]);              \
            if (keep)                                                                                                  \
                for (int i = 0; i < n; i++)                                                                            \
                    value[i] = value[i] * (TYPE)keep[first + i] * (TYPE)boost;                                         \
            BY_NUMBER(width, found, for (int i = 0; i < n; i++) sums[number[i]] += value[i];);                         \
        }                                                                                                              \
    }

ADD_TO_ROW(float, add_to_row32)
ADD_TO_ROW(double, add_to_row64)

/* sums[group(i)] += values[i]: each of the rows takes its share of the values in their order, the first one also what no
   number of rows divides. */
void gpart_reduce(
    void *sums, int wide, int64_t rows, int64_t length, const void *values, int half, const void *stored, int width,
    const uint64_t *made, int64_t start, int64_t count, const uint8_t *keep, double boost, int threads)
{
    const int64_t each = count / rows;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t row = 0; row < rows; row++)
        for (int rest = 0; rest < (row ? 1 : 2); rest++) {
            int64_t first = rest ? rows * each : row * each, last = rest ? count : first + each;
            if (wide)
                add_to_row64((double *)sums + row * length, values, half, stored, width, made, start, first, last, keep, boost);
            else
                add_to_row32((float *)sums + row * length, values, half, stored, width, made, start, first, last, keep, boost);
        }
}

/* out[i] = group(start + i), in two or four bytes. */
void gpart_indices(void *out, int width, const uint64_t *made, int64_t start, int64_t count, int threads)
{
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t first = 0; first < count; first += BLOCK) {
        uint32_t number[BLOCK];
        int n = least(count - first);
        computed(number, made, (uint64_t)(start + first), n);
        if (width == 2)
            for (int i = 0; i < n; i++)
                ((uint16_t *)out)[first + i] = (uint16_t)number[i];
        else
            memcpy((uint32_t *)out + first, number, sizeof(uint32_t) * (size_t)n);
    }
}
