//! Where training stands after an epoch, on disk, so that it can go on after an interruption.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

/// Variables and moments after `epoch` epochs.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Checkpoint {
    /// Hash of everything the run depends on; another run does not take it up.
    pub run: String,
    /// Epochs done.
    pub epoch: u64,
    pub step: u64,
    /// Value, first and second moment of each variable.
    pub state: Vec<[Vec<f32>; 3]>,
}

impl Checkpoint {
    /// Replaces the file in one step, so an interruption leaves the old one or the new one.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let head = [self.epoch.to_le_bytes(), self.step.to_le_bytes()].concat();
        let mut tensors = vec![("position".to_owned(), TensorView::new(Dtype::U64, vec![2], &head)?)];
        let bytes: Vec<Vec<u8>> =
            self.state.iter().flatten().map(|values| values.iter().flat_map(|value| value.to_le_bytes()).collect()).collect();
        for (idx, bytes) in bytes.iter().enumerate() {
            tensors.push((format!("{}.{}", idx / 3, idx % 3), TensorView::new(Dtype::F32, vec![bytes.len() / 4], bytes)?));
        }
        let run = [("run".to_owned(), self.run.clone())].into();
        let unfinished = path.with_extension("unfinished");
        std::fs::write(&unfinished, safetensors::serialize(tensors, Some(run))?)
            .and_then(|()| std::fs::rename(&unfinished, path))
            .with_context(|| format!("`{}` cannot be written", path.display()))
    }

    /// The checkpoint of this run, if there is one.
    pub(super) fn read(path: &Path, run: &str, lengths: &[usize]) -> Result<Option<Self>> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("`{}` cannot be read", path.display())),
        };
        let broken = || format!("`{}` is not a checkpoint; remove it to train from the start", path.display());
        let (_, metadata) = SafeTensors::read_metadata(&bytes).with_context(broken)?;
        if metadata.metadata().as_ref().and_then(|metadata| metadata.get("run")).is_none_or(|found| found != run) {
            return Ok(None);
        }
        let tensors = SafeTensors::deserialize(&bytes).with_context(broken)?;
        let position = tensors.tensor("position").with_context(broken)?;
        let (position, _) = position.data().as_chunks::<8>();
        ensure!(position.len() == 2, broken());
        let mut state = Vec::with_capacity(lengths.len());
        for (idx, &length) in lengths.iter().enumerate() {
            let read = |part: usize| -> Result<Vec<f32>> {
                let tensor = tensors.tensor(&format!("{idx}.{part}")).with_context(broken)?;
                let values: Vec<f32> = tensor.data().as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
                ensure!(values.len() == length, broken());
                Ok(values)
            };
            state.push([read(0)?, read(1)?, read(2)?]);
        }
        Ok(Some(Self { run: run.to_owned(), epoch: u64::from_le_bytes(position[0]), step: u64::from_le_bytes(position[1]), state }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_comes_back_for_its_own_run_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fold.safetensors");
        let checkpoint = Checkpoint {
            run: "a".to_owned(),
            epoch: 3,
            step: 99,
            state: vec![[vec![1.0, 2.0], vec![0.5, 0.25], vec![0.0, 3.0]], [vec![7.0], vec![8.0], vec![9.0]]],
        };
        assert_eq!(Checkpoint::read(&path, "a", &[2, 1]).unwrap(), None);
        checkpoint.write(&path).unwrap();
        assert_eq!(Checkpoint::read(&path, "a", &[2, 1]).unwrap(), Some(checkpoint));
        assert_eq!(Checkpoint::read(&path, "b", &[2, 1]).unwrap(), None);
        assert!(Checkpoint::read(&path, "a", &[2, 2]).is_err());
        std::fs::write(&path, b"half a file").unwrap();
        assert!(Checkpoint::read(&path, "a", &[2, 1]).is_err());
    }
}
