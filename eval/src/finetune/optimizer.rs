//! AdamW (Loshchilov and Hutter, arXiv 1711.05101) whose moments can be saved between epochs, which candle's cannot.

use anyhow::Result;
use candle_core::{Device, Tensor, Var};

const BETA_1: f64 = 0.9;
const BETA_2: f64 = 0.98;
const EPSILON: f64 = 1e-8;

/// Moments of every variable.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct AdamW {
    pub step: u64,
    /// First and second moment, as long as the variable.
    pub moments: Vec<(Vec<f32>, Vec<f32>)>,
    weight_decay: f64,
}

impl AdamW {
    pub(super) fn new(variables: &[Var], weight_decay: f64) -> Self {
        let zeros = |variable: &Var| (vec![0.0; variable.elem_count()], vec![0.0; variable.elem_count()]);
        Self { step: 0, moments: variables.iter().map(zeros).collect(), weight_decay }
    }

    /// Moves every variable against its gradient. `learning_rate` is asked for each variable's.
    pub(super) fn update(&mut self, variables: &[Var], gradients: &[Vec<f32>], learning_rate: impl Fn(usize) -> f64) -> Result<()> {
        self.step += 1;
        let correction_1 = 1.0 - BETA_1.powf(self.step as f64);
        let correction_2 = 1.0 - BETA_2.powf(self.step as f64);
        for (idx, ((variable, gradient), (first, second))) in variables.iter().zip(gradients).zip(&mut self.moments).enumerate() {
            let rate = learning_rate(idx);
            let scale = (rate / correction_1) as f32;
            let shrink = (1.0 - rate * self.weight_decay) as f32;
            let (beta_1, beta_2, root, epsilon) = (BETA_1 as f32, BETA_2 as f32, (1.0 / correction_2) as f32, EPSILON as f32);
            let mut values = variable.flatten_all()?.to_vec1::<f32>()?;
            for (((value, &gradient), first), second) in values.iter_mut().zip(gradient).zip(first).zip(second) {
                *first = beta_1 * *first + (1.0 - beta_1) * gradient;
                *second = beta_2 * *second + (1.0 - beta_2) * gradient * gradient;
                *value = *value * shrink - scale * *first / ((*second * root).sqrt() + epsilon);
            }
            variable.set(&Tensor::from_vec(values, variable.shape(), &Device::Cpu)?)?;
        }
        Ok(())
    }
}

/// Scales gradients down to a total length of `max_norm`; returns the length they had.
pub(super) fn clip(gradients: &mut [Vec<f32>], max_norm: f64) -> f64 {
    let norm = gradients.iter().flatten().map(|&value| f64::from(value) * f64::from(value)).sum::<f64>().sqrt();
    if norm > max_norm {
        let scale = (max_norm / norm) as f32;
        gradients.iter_mut().flatten().for_each(|value| *value *= scale);
    }
    norm
}

/// Linear warm-up over the first `warm_up` share of the steps, then linear decay to zero; 0 to 1.
pub(super) fn schedule(step: usize, n_steps: usize, warm_up: f64) -> f64 {
    let progress = (step as f64 + 0.5) / n_steps.max(1) as f64;
    if progress < warm_up { progress / warm_up } else { (1.0 - progress) / (1.0 - warm_up) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quadratic_is_minimised() {
        let variable = Var::from_vec(vec![3.0_f32, -2.0], 2, &Device::Cpu).unwrap();
        let variables = [variable.clone()];
        let mut optimizer = AdamW::new(&variables, 0.0);
        for step in 0..400 {
            let gradient = variable.to_vec1::<f32>().unwrap().iter().map(|value| 2.0 * (value - 1.0)).collect();
            optimizer.update(&variables, &[gradient], |_| 0.1 * schedule(step, 400, 0.1)).unwrap();
        }
        for value in variable.to_vec1::<f32>().unwrap() {
            assert!((value - 1.0).abs() < 1e-3, "{value}");
        }
    }

    /// `torch.optim.AdamW([2.0], lr=0.1, betas=(0.9, 0.98), weight_decay=0.5)`, gradients 1.0 then -0.5.
    #[test]
    fn two_steps_agree_with_the_formula() {
        let variable = Var::from_vec(vec![2.0_f32], 1, &Device::Cpu).unwrap();
        let variables = [variable.clone()];
        let mut optimizer = AdamW::new(&variables, 0.5);
        optimizer.update(&variables, &[vec![1.0]], |_| 0.1).unwrap();
        assert!((variable.to_vec1::<f32>().unwrap()[0] - 1.8).abs() < 1e-6);
        optimizer.update(&variables, &[vec![-0.5]], |_| 0.1).unwrap();
        let (first, second): (f64, f64) = (0.9 * 0.1 - 0.1 * 0.5, 0.98 * 0.02 + 0.02 * 0.25);
        let expected = 1.8 * 0.95 - 0.1 * (first / (1.0 - 0.81)) / (second / (1.0 - 0.98 * 0.98)).sqrt();
        assert!((f64::from(variable.to_vec1::<f32>().unwrap()[0]) - expected).abs() < 1e-5);
    }

    #[test]
    fn the_schedule_rises_and_falls() {
        let rates: Vec<f64> = (0..100).map(|step| schedule(step, 100, 0.1)).collect();
        assert!(rates[0] < 0.1 && rates[99] < 0.01);
        assert!(rates[9] > 0.9 && rates.iter().all(|rate| (0.0..=1.0).contains(rate)));
    }

    #[test]
    fn clipping_keeps_the_direction() {
        let mut gradients = vec![vec![3.0, 0.0], vec![4.0]];
        assert!((clip(&mut gradients, 1.0) - 5.0).abs() < 1e-9);
        assert!((gradients[0][0] - 0.6).abs() < 1e-6 && (gradients[1][0] - 0.8).abs() < 1e-6);
        clip(&mut gradients, 2.0);
        assert!((gradients[1][0] - 0.8).abs() < 1e-6);
    }
}
