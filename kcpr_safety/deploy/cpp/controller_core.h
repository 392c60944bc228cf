/* ---- what follows is the same in every file; the constants above are one policy's ----
 *
 * Raw physical observation in, actuator command out; no allocation, no global state, no recursion,
 * the same work in every call. Include it in one translation unit and link with -lm.
 *
 *   kcpr_check     0, or bits: 1 not finite, 2 beyond the hard range, 4 outside what training saw
 *   kcpr_nominal   the reward module's action            kcpr_fallback   the punishment module's
 *   kcpr_risk      pessimistic predicted punishment of an action
 *   kcpr_act       action, risk and mode, without memory
 *   kcpr_start     the state to begin with               kcpr_step       the same with memory
 *
 * Modes: 0 nominal, 1 avoiding, 2 blended, 4 invalid observation (the safe action).
 *
 * Sums run in another order than torch's, so answers differ in the last bits of a float. Define
 * KCPR_SUM as double before including this file for sums that are exact to less than that, at about
 * three times the time.
 */

#ifndef KCPR_SUM
#define KCPR_SUM float
#endif

typedef struct {
    float steps, weight, engaged, held;
    float before[KCPR_ACTIONS];
} kcpr_state;

static inline int kcpr_finite(const float *values, int count)
{
    int all = 1;
    for (int i = 0; i < count; ++i) all &= isfinite(values[i]) != 0;
    return all;
}

/* NaN stays NaN: whoever asks next must test. */
static inline float kcpr_clamp(float value, float low, float high)
{
    return value < low ? low : value > high ? high : value;
}

/* y = x W + b; four rows at a time, for fewer passes over the sums and shorter chains of rounding. */
static inline void kcpr_dense(const kcpr_layer *layer, const float *restrict x, float *restrict y)
{
    KCPR_SUM sum[KCPR_WIDTH];
    const int count = layer->outputs;
    const float *restrict a = layer->weight;
    int i = 0;
    for (int j = 0; j < count; ++j) sum[j] = 0;
    for (; i + 4 <= layer->inputs; i += 4, a += 4 * count) {
        const float *restrict b = a + count, *restrict c = b + count, *restrict d = c + count;
        const KCPR_SUM p = x[i], q = x[i + 1], r = x[i + 2], s = x[i + 3];
        for (int j = 0; j < count; ++j) sum[j] += (p * a[j] + q * b[j]) + (r * c[j] + s * d[j]);
    }
    for (; i < layer->inputs; ++i, a += count) {
        const KCPR_SUM p = x[i];
        for (int j = 0; j < count; ++j) sum[j] += p * a[j];
    }
    for (int j = 0; j < count; ++j) y[j] = (float)(sum[j] + layer->bias[j]);
}

/* To mean 0 and variance 1, as torch's layer_norm without weights. */
static inline void kcpr_norm(float *y, int count)
{
    float mean = 0.0f, square = 0.0f;
    for (int j = 0; j < count; ++j) mean += y[j];
    mean /= (float)count;
    for (int j = 0; j < count; ++j) square += (y[j] - mean) * (y[j] - mean);
    const float scale = 1.0f / sqrtf(square / (float)count + KCPR_NORM_EPS);
    for (int j = 0; j < count; ++j) y[j] = (y[j] - mean) * scale;
}

static inline void kcpr_network(const kcpr_layer *layers, int count, int norm, const float *x,
                                float *out)
{
    float one[KCPR_WIDTH], two[KCPR_WIDTH];
    const float *from = x;
    for (int i = 0; i + 1 < count; ++i) {
        float *to = i % 2 ? two : one;
        kcpr_dense(&layers[i], from, to);
        if (norm) kcpr_norm(to, layers[i].outputs);
        for (int j = 0; j < layers[i].outputs; ++j) to[j] = to[j] < 0.0f ? 0.0f : to[j];
        from = to;
    }
    kcpr_dense(&layers[count - 1], from, out);
}

static inline void kcpr_normalise(const float *obs, float *x)
{
    for (int i = 0; i < KCPR_OBSERVATIONS; ++i) {
        const float finite = isfinite(obs[i]) ? obs[i] : 0.0f;
        x[i] = kcpr_clamp((finite - kcpr_obs_mean[i]) * kcpr_obs_scale[i], -KCPR_MAX_NORMALISED,
                          KCPR_MAX_NORMALISED);
#if KCPR_LOOKS_NEAR
        x[i] += kcpr_obs_near[i] * expf(KCPR_NEAR_GAIN * (fminf(finite, 1.0f) - 1.0f));
#endif
    }
}

static inline int32_t kcpr_check(const float *obs)
{
    int hard = 1, seen = 1;
    for (int i = 0; i < KCPR_OBSERVATIONS; ++i) {
        hard &= obs[i] >= kcpr_hard_low[i] && obs[i] <= kcpr_hard_high[i];
        seen &= obs[i] >= kcpr_seen_low[i] && obs[i] <= kcpr_seen_high[i];
    }
    return (kcpr_finite(obs, KCPR_OBSERVATIONS) ? 0 : 1) + (hard ? 0 : 2) + (seen ? 0 : 4);
}

#if KCPR_COMMANDS

/* The row of the table that `preference` likes best; of equals the first. */
static inline void kcpr_choose(const float *preference, float *action)
{
    int best = 0;
    const int valid = kcpr_finite(preference, KCPR_COMMANDS);
    for (int k = 1; k < KCPR_COMMANDS; ++k)
        if (preference[k] > preference[best]) best = k;
    for (int i = 0; i < KCPR_ACTIONS; ++i)
        action[i] = valid ? kcpr_commands[best * KCPR_ACTIONS + i] : kcpr_safe[i];
}

static inline void kcpr_both(const float *x, float *nominal, float *fallback)
{
    float reward[KCPR_COMMANDS], punishment[KCPR_COMMANDS];
    kcpr_network(kcpr_reward, KCPR_REWARD_LAYERS, 0, x, reward);
    kcpr_network(kcpr_punishment, KCPR_PUNISHMENT_LAYERS, 0, x, punishment);
    for (int k = 0; k < KCPR_COMMANDS; ++k)
        reward[k] = kcpr_logit_weights[0] * reward[k] + kcpr_logit_weights[1] * punishment[k];
    kcpr_choose(reward, nominal);
    kcpr_choose(punishment, fallback);
}

static inline float kcpr_value(const float *x, const float *action)
{
    float values[KCPR_COMMANDS], least = INFINITY;
    int nearest = 0;
    kcpr_network(kcpr_punishment, KCPR_PUNISHMENT_LAYERS, 0, x, values);
    for (int k = 0; k < KCPR_COMMANDS; ++k) {
        float gap = 0.0f;
        for (int i = 0; i < KCPR_ACTIONS; ++i) {
            const float apart = action[i] - kcpr_commands[k * KCPR_ACTIONS + i];
            gap += apart * apart;
        }
        if (gap < least) least = gap, nearest = k;
    }
    return -values[nearest];
}

static inline float kcpr_weight(float risk)
{
    return KCPR_FALLBACK && !(risk < KCPR_ENGAGE) ? 1.0f : 0.0f;
}

static inline float kcpr_blend(float nominal, float fallback, float weight)
{
    return weight >= 0.5f ? fallback : nominal;
}

#else

static inline void kcpr_command(const float *mean, float *action)
{
    for (int i = 0; i < KCPR_ACTIONS; ++i) {
        const float span = kcpr_high[i] - kcpr_low[i];
        const float full = kcpr_low[i] + (tanhf(mean[i]) + 1.0f) / 2.0f * span;
        const float inside = kcpr_clamp(full, kcpr_low[i], kcpr_high[i]);
        action[i] = isfinite(inside) ? inside : kcpr_safe[i];
    }
}

static inline void kcpr_both(const float *x, float *nominal, float *fallback)
{
    float out[2 * KCPR_ACTIONS], offset[KCPR_ACTIONS];
    kcpr_network(kcpr_reward, KCPR_REWARD_LAYERS, 0, x, out);
    kcpr_network(kcpr_punishment, KCPR_PUNISHMENT_LAYERS, 0, x, offset);
    kcpr_command(out, nominal);
    for (int i = 0; i < KCPR_ACTIONS; ++i) {
        const float width = 0.5f * (KCPR_LOG_STD_HIGH - KCPR_LOG_STD_LOW);
        const float log_std = KCPR_LOG_STD_LOW + width * (tanhf(out[KCPR_ACTIONS + i]) + 1.0f);
        out[i] += expf(log_std) * offset[i];
    }
    kcpr_command(out, fallback);
}

static inline float kcpr_value(const float *x, const float *action)
{
    float in[KCPR_OBSERVATIONS + KCPR_ACTIONS], one, two;
    for (int i = 0; i < KCPR_OBSERVATIONS; ++i) in[i] = x[i];
    for (int i = 0; i < KCPR_ACTIONS; ++i) {
        const float half = (kcpr_high[i] - kcpr_low[i]) / 2.0f;
        in[KCPR_OBSERVATIONS + i] =
            kcpr_clamp((action[i] - kcpr_low[i]) / half - 1.0f, -1.0f, 1.0f);
    }
    kcpr_network(kcpr_twin_0, KCPR_TWIN_LAYERS, KCPR_TWIN_NORM, in, &one);
    kcpr_network(kcpr_twin_1, KCPR_TWIN_LAYERS, KCPR_TWIN_NORM, in, &two);
    return isnan(one) || one > two ? one : two;
}

static inline float kcpr_weight(float risk)
{
    const float weight = kcpr_clamp((risk - KCPR_RELEASE) / KCPR_SPAN, 0.0f, 1.0f);
    return KCPR_FALLBACK ? (isfinite(risk) ? weight : 1.0f) : 0.0f;
}

static inline float kcpr_blend(float nominal, float fallback, float weight)
{
    return weight >= 1.0f ? fallback : nominal + weight * (fallback - nominal);
}

#endif

/* The safe action for what is not finite. */
static inline void kcpr_sure(const float *obs, float *action)
{
    if (!kcpr_finite(obs, KCPR_OBSERVATIONS))
        for (int i = 0; i < KCPR_ACTIONS; ++i) action[i] = kcpr_safe[i];
}

static inline void kcpr_nominal(const float *obs, float *action)
{
    float x[KCPR_OBSERVATIONS], fallback[KCPR_ACTIONS];
    kcpr_normalise(obs, x);
    kcpr_both(x, action, fallback);
    kcpr_sure(obs, action);
}

static inline void kcpr_fallback(const float *obs, float *action)
{
    float x[KCPR_OBSERVATIONS], nominal[KCPR_ACTIONS];
    kcpr_normalise(obs, x);
    kcpr_both(x, nominal, action);
    kcpr_sure(obs, action);
}

static inline float kcpr_risk_of(const float *x, const float *action)
{
    const float risk = kcpr_value(x, action) / KCPR_RISK_SCALE;
    return risk < 0.0f ? 0.0f : risk;
}

static inline float kcpr_risk(const float *obs, const float *action)
{
    float x[KCPR_OBSERVATIONS];
    kcpr_normalise(obs, x);
    return kcpr_risk_of(x, action);
}

static inline int32_t kcpr_mode(float weight, int valid)
{
    if (!valid) return 4;
    return weight >= 1.0f ? 1 : weight > 0.0f ? 2 : 0;
}

static inline int32_t kcpr_act(const float *obs, float *action, float *risk)
{
    float x[KCPR_OBSERVATIONS], nominal[KCPR_ACTIONS], fallback[KCPR_ACTIONS];
    const int valid = (kcpr_check(obs) & 3) == 0;
    kcpr_normalise(obs, x);
    kcpr_both(x, nominal, fallback);
    *risk = kcpr_risk_of(x, nominal);
    const float weight = kcpr_weight(*risk);
    for (int i = 0; i < KCPR_ACTIONS; ++i)
        action[i] = valid ? kcpr_blend(nominal[i], fallback[i], weight) : kcpr_safe[i];
    return kcpr_mode(weight, valid);
}

static inline void kcpr_start(kcpr_state *state)
{
    state->steps = state->weight = state->engaged = state->held = 0.0f;
    for (int i = 0; i < KCPR_ACTIONS; ++i) state->before[i] = kcpr_default[i];
}

static inline int kcpr_whole(const kcpr_state *state)
{
    return kcpr_finite(&state->steps, 1) && kcpr_finite(&state->weight, 1) &&
           kcpr_finite(&state->engaged, 1) && kcpr_finite(&state->held, 1) &&
           kcpr_finite(state->before, KCPR_ACTIONS);
}

static inline int32_t kcpr_step(const float *obs, kcpr_state *state, float *action, float *risk)
{
    float x[KCPR_OBSERVATIONS], nominal[KCPR_ACTIONS], fallback[KCPR_ACTIONS];
    const int valid = (kcpr_check(obs) & 3) == 0;
    kcpr_normalise(obs, x);
    kcpr_both(x, nominal, fallback);
    *risk = kcpr_risk_of(x, nominal);
    if (!kcpr_whole(state)) kcpr_start(state);
    const int stays = state->engaged > 0.5f &&
                      !(*risk < KCPR_RELEASE && state->held >= KCPR_DWELL);
    const float on = KCPR_FALLBACK && (!(*risk < KCPR_ENGAGE) || stays) ? 1.0f : 0.0f;
    state->engaged = on;
    state->held = on * kcpr_clamp(state->held + 1.0f, -INFINITY, KCPR_DWELL);
    state->weight =
        kcpr_clamp(state->weight + (2.0f * on - 1.0f) * KCPR_BLEND_SHARE, 0.0f, 1.0f);
    state->steps = kcpr_clamp(state->steps + 1.0f, -INFINITY, KCPR_SOFT_START);
    for (int i = 0; i < KCPR_ACTIONS; ++i) {
        float wish = kcpr_blend(nominal[i], fallback[i], state->weight);
        if (state->steps < KCPR_SOFT_START)
            wish = kcpr_default[i] +
                   state->steps / KCPR_SOFT_START * (wish - kcpr_default[i]);
        wish = kcpr_clamp(wish, state->before[i] - kcpr_slew[i], state->before[i] + kcpr_slew[i]);
        wish = kcpr_clamp(wish, kcpr_low[i], kcpr_high[i]);
        action[i] = valid && isfinite(wish) ? wish : kcpr_safe[i];
        state->before[i] = action[i];
    }
    return kcpr_mode(state->weight, valid);
}

#endif
