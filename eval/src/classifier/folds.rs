//! Which examples are held out together.

use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

/// Folds where the data has one group only, at most.
const RANDOM_FOLDS: usize = 5;

/// The fold of each example. Groups are never torn apart; a single group is split at random, each label evenly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folds {
    pub of: Vec<usize>,
    /// What each fold holds out.
    pub names: Vec<String>,
    /// Whether folds are whole groups, so that a figure says something about unseen ones.
    pub by_group: bool,
}

impl Folds {
    /// At most `n_folds`: groups are held out several at once where there are more. `groups[i]` and `labels[i]` belong to example i.
    pub fn new(groups: &[usize], group_names: &[String], labels: &[usize], n_folds: usize, seed: u64) -> Self {
        if group_names.len() < 2 {
            return Self::random(labels, n_folds.min(RANDOM_FOLDS), seed);
        }
        let mut sizes: Vec<(usize, usize)> = (0..group_names.len()).map(|group| (0, group)).collect();
        for &group in groups {
            sizes[group].0 += 1;
        }
        let n_folds = group_names.len().min(n_folds);
        let mut fold_of_group = vec![0; group_names.len()];
        let mut names = vec![Vec::new(); n_folds];
        if group_names.len() == n_folds {
            for group in 0..n_folds {
                fold_of_group[group] = group;
                names[group].push(group_names[group].clone());
            }
        } else {
            // The largest group goes to the smallest fold.
            sizes.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
            let mut filled = vec![0; n_folds];
            for (size, group) in sizes {
                let fold = (0..n_folds).min_by_key(|&fold| filled[fold]).expect("there is a fold");
                filled[fold] += size;
                fold_of_group[group] = fold;
                names[fold].push(group_names[group].clone());
            }
        }
        let of = groups.iter().map(|&group| fold_of_group[group]).collect();
        Self { of, names: names.into_iter().map(|names| names.join(", ")).collect(), by_group: true }
    }

    fn random(labels: &[usize], n_folds: usize, seed: u64) -> Self {
        let mut rng = rand_pcg::Pcg64::seed_from_u64(seed);
        let n_labels = labels.iter().max().map_or(0, |&label| label + 1);
        let mut of = vec![0; labels.len()];
        for label in 0..n_labels {
            let mut members: Vec<usize> = (0..labels.len()).filter(|&example| labels[example] == label).collect();
            members.shuffle(&mut rng);
            let start = rng.random_range(0..n_folds);
            for (position, example) in members.into_iter().enumerate() {
                of[example] = (start + position) % n_folds;
            }
        }
        let names = (0..n_folds).map(|fold| format!("random {}", fold + 1)).collect();
        Self { of, names, by_group: false }
    }

    pub fn n_folds(&self) -> usize {
        self.names.len()
    }

    /// Examples that fold `fold` trains on.
    pub fn training(&self, fold: usize) -> Vec<usize> {
        (0..self.of.len()).filter(|&example| self.of[example] != fold).collect()
    }

    /// Examples that fold `fold` holds out.
    pub fn held_out(&self, fold: usize) -> Vec<usize> {
        (0..self.of.len()).filter(|&example| self.of[example] == fold).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_never_torn_apart() {
        #[track_caller]
        fn check(n_groups: usize, expected_folds: usize) {
            let groups: Vec<usize> = (0..600).map(|example| example * example % n_groups).collect();
            let names: Vec<String> = (0..n_groups).map(|group| format!("part {group}")).collect();
            let folds = Folds::new(&groups, &names, &vec![0; 600], 10, 1);
            assert_eq!(folds.n_folds(), expected_folds);
            for a in 0..600 {
                assert!((0..600).all(|b| groups[a] != groups[b] || folds.of[a] == folds.of[b]));
            }
        }

        check(2, 2);
        check(10, 10);
        check(37, 10);
    }

    #[test]
    fn one_group_is_split_evenly_within_each_label() {
        let labels: Vec<usize> = (0..100).map(|example| example % 4).collect();
        let folds = Folds::new(&[0; 100], &["all".to_owned()], &labels, 10, 3);
        assert!(!folds.by_group);
        for fold in 0..RANDOM_FOLDS {
            for label in 0..4 {
                assert_eq!(folds.held_out(fold).iter().filter(|&&example| labels[example] == label).count(), 5);
            }
        }
        assert_eq!(folds, Folds::new(&[0; 100], &["all".to_owned()], &labels, 10, 3));
    }
}
