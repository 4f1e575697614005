//! The leader's epoch: who was deposed cannot come back, not even after a restart of the agent.

use std::path::{Path, PathBuf};

/// The highest epoch seen, kept in a file of the state directory.
#[derive(Debug)]
pub struct Epoch {
    highest: u64,
    path: PathBuf,
}

/// Why a call is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EpochError {
    #[error("epoch {given} is over: a leader with epoch {highest} has been here")]
    Over { given: u64, highest: u64 },
    #[error("the epoch cannot be written: {0}")]
    Unwritable(String),
}

impl Epoch {
    /// Reads what an earlier run has written.
    pub fn open(state_dir: &Path) -> Self {
        let path = state_dir.join("epoch");
        let highest = std::fs::read_to_string(&path).ok().and_then(|t| t.trim().parse().ok()).unwrap_or(0);
        Epoch { highest, path }
    }

    /// Lets a call through, if no later leader has called.
    pub fn admit(&mut self, given: u64) -> Result<(), EpochError> {
        if given < self.highest {
            return Err(EpochError::Over { given, highest: self.highest });
        }
        if given > self.highest {
            let staged = self.path.with_extension("tmp");
            let written =
                std::fs::write(&staged, given.to_string()).and_then(|()| std::fs::rename(&staged, &self.path));
            written.map_err(|e| EpochError::Unwritable(e.to_string()))?;
            self.highest = given;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lower_epoch_is_refused_even_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut epoch = Epoch::open(dir.path());
        assert_eq!(epoch.admit(3), Ok(()));
        assert_eq!(epoch.admit(3), Ok(()));
        assert_eq!(epoch.admit(2), Err(EpochError::Over { given: 2, highest: 3 }));
        assert_eq!(Epoch::open(dir.path()).admit(2), Err(EpochError::Over { given: 2, highest: 3 }));
    }
}
