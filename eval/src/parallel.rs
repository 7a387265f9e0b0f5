//! The same work on many parts, on every core, with results in the order of the parts.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::Result;

/// Runs `work` on every part; the first error of the parts, in their order, is returned.
///
/// # Panics
/// Where `work` panics.
pub fn in_parallel<T: Sync, R: Send>(parts: &[T], work: impl Fn(&T) -> Result<R> + Sync) -> Result<Vec<R>> {
    let n_threads = std::thread::available_parallelism().map_or(1, usize::from).min(parts.len());
    let next = AtomicUsize::new(0);
    let done = Mutex::new((0..parts.len()).map(|_| None).collect::<Vec<Option<Result<R>>>>());
    std::thread::scope(|scope| {
        for _ in 0..n_threads {
            scope.spawn(|| {
                while let Some((idx, part)) =
                    Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|idx| Some((idx, parts.get(idx)?)))
                {
                    let result = work(part);
                    done.lock().unwrap_or_else(PoisonError::into_inner)[idx] = Some(result);
                }
            });
        }
    });
    let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.into_iter().map(|result| result.expect("every part was worked on")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_stand_in_the_order_of_the_parts() {
        let parts: Vec<u64> = (0..100).collect();
        let squares = in_parallel(&parts, |&part| Ok(part * part)).unwrap();
        assert!(squares.iter().zip(&parts).all(|(square, part)| *square == part * part));
        let error = in_parallel(&parts, |&part| if part >= 7 { anyhow::bail!("{part}") } else { Ok(()) }).unwrap_err();
        assert_eq!(error.to_string(), "7");
    }
}
