//! The inner loops of the encoder on plain slices: exp, GELU, softmax, layer normalisation, pooling, and their backward passes.
//!
//! Written so that the compiler vectorises them: no branches, no library calls, sums in fixed lanes. Each is compiled a second
//! time for AVX2, chosen at run time. Multiplications and additions are never fused, so both give the same bits. It refuses to
//! know tensors; see `ops`.

/// Partial sums kept side by side: two AVX2 registers' worth, and the same order of additions on every machine.
const N_LANES: usize = 16;

/// Compiles a function twice, for the baseline and for AVX2, and picks at run time.
macro_rules! vectorised {
    ($(#[$attribute:meta])* $name:ident, $body:ident, ($($argument:ident: $type:ty),*)) => {
        $(#[$attribute])*
        pub(super) fn $name($($argument: $type),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn avx2($($argument: $type),*) {
                    $body($($argument),*);
                }
                if std::arch::is_x86_feature_detected!("avx2") {
                    // SAFETY: the one requirement of `avx2` is the feature that was just detected.
                    return unsafe { avx2($($argument),*) };
                }
            }
            $body($($argument),*);
        }
    };
}

vectorised! {
    /// GELU with the exact error function, in place: `x * (1 + erf(x / sqrt 2)) / 2`.
    gelu, gelu_body, (values: &mut [f32])
}

vectorised! {
    /// Softmax of each row of `row_len` values, in place.
    softmax_rows, softmax_rows_body, (values: &mut [f32], row_len: usize)
}

vectorised! {
    /// Normalises each row of `values` to mean 0 and variance 1, then scales and shifts it; rows are as long as `weight`.
    layer_norm_rows, layer_norm_rows_body, (values: &mut [f32], weight: &[f32], bias: &[f32], epsilon: f32)
}

vectorised! {
    /// Sums the rows of `values` into `sum`, whose length is that of a row.
    sum_rows, sum_rows_body, (values: &[f32], sum: &mut [f32])
}

vectorised! {
    /// Turns the gradient of [`gelu`]'s result into that of its input `values`, in place.
    gelu_backward, gelu_backward_body, (values: &[f32], gradient: &mut [f32])
}

vectorised! {
    /// Turns the gradient of [`softmax_rows`]' result `probabilities` into that of its input, in place.
    softmax_rows_backward, softmax_rows_backward_body, (probabilities: &[f32], gradient: &mut [f32], row_len: usize)
}

vectorised! {
    /// Turns the gradient of [`layer_norm_rows`]' result into that of its input `values`, in place.
    layer_norm_rows_backward, layer_norm_rows_backward_body, (values: &[f32], weight: &[f32], epsilon: f32, gradient: &mut [f32])
}

#[inline(always)]
fn gelu_body(values: &mut [f32]) {
    for value in values {
        let x = *value;
        *value = 0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2));
    }
}

#[inline(always)]
fn softmax_rows_body(values: &mut [f32], row_len: usize) {
    for row in values.chunks_exact_mut(row_len) {
        let mut lanes = [f32::NEG_INFINITY; N_LANES];
        let (chunks, rest) = row.as_chunks::<N_LANES>();
        for chunk in chunks {
            for (lane, &value) in lanes.iter_mut().zip(chunk) {
                // A comparison rather than `max`, which checks for NaN and does not vectorise; NaN goes through `exp` to the sum.
                *lane = if value > *lane { value } else { *lane };
            }
        }
        let max = lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max);

        let mut lanes = [0.0; N_LANES];
        let (chunks, rest) = row.as_chunks_mut::<N_LANES>();
        for chunk in chunks {
            for (lane, value) in lanes.iter_mut().zip(chunk) {
                *value = exp(*value - max);
                *lane += *value;
            }
        }
        let mut sum: f32 = lanes.iter().sum();
        for value in rest {
            *value = exp(*value - max);
            sum += *value;
        }
        let scale = 1.0 / sum;
        for value in row {
            *value *= scale;
        }
    }
}

#[inline(always)]
fn layer_norm_rows_body(values: &mut [f32], weight: &[f32], bias: &[f32], epsilon: f32) {
    let hidden_size = weight.len();
    for row in values.chunks_exact_mut(hidden_size) {
        let mean = sum_of(row, |value| value) / hidden_size as f32;
        let variance = sum_of(row, |value| (value - mean) * (value - mean)) / hidden_size as f32;
        let scale = 1.0 / (variance + epsilon).sqrt();
        for ((value, weight), bias) in row.iter_mut().zip(weight).zip(bias) {
            *value = (*value - mean) * scale * weight + bias;
        }
    }
}

#[inline(always)]
fn sum_rows_body(values: &[f32], sum: &mut [f32]) {
    for row in values.chunks_exact(sum.len()) {
        for (sum, value) in sum.iter_mut().zip(row) {
            *sum += value;
        }
    }
}

#[inline(always)]
fn gelu_backward_body(values: &[f32], gradient: &mut [f32]) {
    const FRAC_1_SQRT_2PI: f32 = 0.398_942_3;
    for (gradient, &x) in gradient.iter_mut().zip(values) {
        let cumulative = 0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2));
        *gradient *= cumulative + x * exp(-0.5 * x * x) * FRAC_1_SQRT_2PI;
    }
}

#[inline(always)]
fn softmax_rows_backward_body(probabilities: &[f32], gradient: &mut [f32], row_len: usize) {
    for (row, gradient) in probabilities.chunks_exact(row_len).zip(gradient.chunks_exact_mut(row_len)) {
        let mean = sum_of_products(row, gradient, |p, g| p * g);
        for (gradient, p) in gradient.iter_mut().zip(row) {
            *gradient = p * (*gradient - mean);
        }
    }
}

#[inline(always)]
fn layer_norm_rows_backward_body(values: &[f32], weight: &[f32], epsilon: f32, gradient: &mut [f32]) {
    let hidden_size = weight.len();
    let n = hidden_size as f32;
    for (row, gradient) in values.chunks_exact(hidden_size).zip(gradient.chunks_exact_mut(hidden_size)) {
        let mean = sum_of(row, |value| value) / n;
        let variance = sum_of(row, |value| (value - mean) * (value - mean)) / n;
        let scale = 1.0 / (variance + epsilon).sqrt();
        for (gradient, weight) in gradient.iter_mut().zip(weight) {
            *gradient *= weight;
        }
        let mean_gradient = sum_of(gradient, |value| value) / n;
        let slope = sum_of_products(row, gradient, |x, g| (x - mean) * scale * g) / n;
        for (gradient, x) in gradient.iter_mut().zip(row) {
            *gradient = scale * (*gradient - mean_gradient - (x - mean) * scale * slope);
        }
    }
}

#[inline(always)]
fn sum_of_products(left: &[f32], right: &[f32], term: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0; N_LANES];
    let ((left, left_rest), (right, right_rest)) = (left.as_chunks::<N_LANES>(), right.as_chunks::<N_LANES>());
    for (left, right) in left.iter().zip(right) {
        for ((lane, &a), &b) in lanes.iter_mut().zip(left).zip(right) {
            *lane += term(a, b);
        }
    }
    lanes.iter().sum::<f32>() + left_rest.iter().zip(right_rest).map(|(&a, &b)| term(a, b)).sum::<f32>()
}

#[inline(always)]
fn sum_of(values: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0; N_LANES];
    let (chunks, rest) = values.as_chunks::<N_LANES>();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane += term(value);
        }
    }
    lanes.iter().sum::<f32>() + rest.iter().map(|&value| term(value)).sum::<f32>()
}

/// e^x for x <= 0, relative error below 2e-7; below -87 it stays at e^-87, which is 1e-38. NaN stays NaN.
///
/// Cephes `expf` (S. Moshier, 1984): x = n ln 2 + r, a polynomial for e^r, n put into the exponent bits.
#[inline(always)]
fn exp(x: f32) -> f32 {
    /// Adding 1.5 * 2^23 leaves the nearest integer in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts, the first exact in few bits so that n times it is exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;

    let x = if x < -87.0 { -87.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    let mut polynomial = 1.987_569_1e-4;
    polynomial = polynomial * r + 1.398_199_9e-3;
    polynomial = polynomial * r + 8.333_452e-3;
    polynomial = polynomial * r + 4.166_579_6e-2;
    polynomial = polynomial * r + 1.666_666_5e-1;
    polynomial = polynomial * r + 0.5;
    let exp_r = polynomial * (r * r) + r + 1.0;
    // The low bits of `shifted` hold n; shifting left drops everything else of it.
    let power_of_two = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    exp_r * power_of_two
}

/// The error function, absolute error below 5e-7. NaN stays NaN.
///
/// Rational approximation of Eigen 3 (`MathFunctionsImpl.h`, `generic_fast_erf_float`), odd of degree 13 over even of degree 8;
/// beyond 4 the function is 1 to within 2e-8.
#[inline(always)]
fn erf(x: f32) -> f32 {
    let x = if x < -4.0 { -4.0 } else { x };
    let x = if x > 4.0 { 4.0 } else { x };
    let x2 = x * x;
    let mut numerator = -2.726_142_3e-10;
    numerator = numerator * x2 + 2.770_681_4e-8;
    numerator = numerator * x2 - 2.101_024e-6;
    numerator = numerator * x2 - 5.692_506_5e-5;
    numerator = numerator * x2 - 7.349_906_3e-4;
    numerator = numerator * x2 - 2.954_598e-3;
    numerator = numerator * x2 - 1.609_603_3e-2;
    let mut denominator = -1.456_607_2e-5;
    denominator = denominator * x2 - 2.133_740_6e-4;
    denominator = denominator * x2 - 1.682_827e-3;
    denominator = denominator * x2 - 7.373_329e-3;
    denominator = denominator * x2 - 1.426_473_9e-2;
    x * numerator / denominator
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_agrees_with_the_standard_library() {
        for step in 0..=870_000 {
            let x = -(step as f32) * 1e-4;
            let relative = f64::from(exp(x)) / f64::from(x).exp() - 1.0;
            assert!(relative.abs() < 2e-7, "exp({x}) is off by {relative:e}");
        }
        assert!(exp(-1e30) < 2e-38 && exp(f32::NAN).is_nan());
    }

    #[test]
    fn gelu_agrees_with_the_exact_error_function() {
        let inputs: Vec<f32> = (-120_000..=120_000).map(|step| step as f32 * 1e-4).collect();
        let mut outputs = inputs.clone();
        gelu(&mut outputs);
        let reference =
            candle_core::Tensor::new(inputs.clone(), &candle_core::Device::Cpu).unwrap().to_dtype(candle_core::DType::F64);
        let reference = reference.unwrap().gelu_erf().unwrap().to_vec1::<f64>().unwrap();
        for ((x, found), expected) in inputs.iter().zip(&outputs).zip(reference) {
            // The error of erf, 5e-7, is multiplied by x / 2.
            let tolerance = 3e-7 * f64::from(x.abs()).max(1.0);
            assert!((f64::from(*found) - expected).abs() < tolerance, "gelu({x}) is {found}, not {expected}");
        }
    }

    #[test]
    fn softmax_rows_sum_to_one_at_any_length_and_shift() {
        #[track_caller]
        fn check(row: &[f32]) {
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let exps: Vec<f64> = row.iter().map(|x| f64::from(x - max).exp()).collect();
            let sum: f64 = exps.iter().sum();
            let mut found = [row, row].concat();
            softmax_rows(&mut found, row.len());
            for (found, exp) in found.iter().zip(exps.iter().cycle()) {
                assert!((f64::from(*found) - exp / sum).abs() < 1e-6, "{row:?}");
            }
        }

        check(&[0.0]);
        check(&[-100.0, 3.0]);
        check(&[1e30, 1e30, -1e30]);
        for length in 1..70 {
            check(&(0..length).map(|idx| ((idx * 37) % 23) as f32 - 11.0).collect::<Vec<_>>());
        }
    }

    #[test]
    fn each_backward_pass_agrees_with_differences() {
        /// Compares the gradient of `weights · forward(values)` with central differences in f32.
        #[track_caller]
        fn check(name: &str, forward: impl Fn(&mut [f32]), backward: impl Fn(&[f32], &mut [f32])) {
            let values: Vec<f32> = (0..74).map(|idx| ((idx * 29) % 17) as f32 * 0.2 - 1.5).collect();
            let weights: Vec<f32> = (0..74).map(|idx| ((idx * 13) % 7) as f32 * 0.5 - 1.0).collect();
            let mut found = weights.clone();
            backward(&values, &mut found);
            let loss = |idx: usize, step: f32| {
                let mut moved = values.clone();
                moved[idx] += step;
                forward(&mut moved);
                moved.iter().zip(&weights).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
            };
            for (idx, found) in found.into_iter().enumerate() {
                let expected = (loss(idx, 0.01) - loss(idx, -0.01)) / 0.02;
                assert!((f64::from(found) - expected).abs() < 2e-3, "{name}[{idx}] is {found}, not {expected}");
            }
        }

        check("gelu", gelu, gelu_backward);
        let softmax = |values: &mut [f32]| softmax_rows(values, 37);
        check("softmax", softmax, |values, gradient| {
            let mut probabilities = values.to_vec();
            softmax(&mut probabilities);
            softmax_rows_backward(&probabilities, gradient, 37);
        });
        let weight: Vec<f32> = (0..37).map(|idx| 1.0 + idx as f32 * 0.01).collect();
        check(
            "layer_norm",
            |values| layer_norm_rows(values, &weight, &[0.5; 37], 1e-12),
            |values, gradient| layer_norm_rows_backward(values, &weight, 1e-12, gradient),
        );
    }

    #[test]
    fn what_is_not_a_number_stays_visible() {
        let mut row = vec![0.5; 20];
        row[3] = f32::NAN;
        softmax_rows(&mut row, 20);
        assert!(row[0].is_nan());
        let mut row = [f32::NAN, 1.0];
        gelu(&mut row);
        assert!(row[0].is_nan() && row[1].is_finite());
    }

    #[test]
    fn layer_norm_agrees_with_double_precision() {
        let row: Vec<f32> = (0..37).map(|idx| ((idx * 29) % 17) as f32 * 0.3 + 40.0).collect();
        let weight: Vec<f32> = (0..37).map(|idx| 1.0 + idx as f32 * 0.01).collect();
        let bias: Vec<f32> = (0..37).map(|idx| idx as f32 * -0.02).collect();
        let mean = row.iter().map(|x| f64::from(*x)).sum::<f64>() / 37.0;
        let variance = row.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / 37.0;
        let mut found = row.clone();
        layer_norm_rows(&mut found, &weight, &bias, 1e-12);
        for idx in 0..37 {
            let expected = (f64::from(row[idx]) - mean) / (variance + 1e-12).sqrt() * f64::from(weight[idx]) + f64::from(bias[idx]);
            // The mean of 40 loses about three decimal digits of f32.
            assert!((f64::from(found[idx]) - expected).abs() < 2e-5);
        }
    }
}
