//! Another agent beside the one of a node.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Node, agent};

impl Node {
    /// What another agent says that is given these of this node's places, and ends with.
    pub fn run_another(&self, places: &[&str]) -> String {
        let manifests = self.other("manifests");
        std::fs::create_dir_all(&manifests).unwrap();
        let mut command = Command::new(agent());
        command.arg("run").arg("--manifests").arg(manifests);
        self.fails(&mut command, places)
    }

    /// The same of a purge beside this node's agent.
    pub fn purge_another(&self) -> String {
        let root = self.root();
        self.fails(Command::new(agent()).arg("purge"), &["--bpffs", &root.to_string_lossy()])
    }

    fn other(&self, name: &str) -> PathBuf {
        self.dir.path().join("other").join(name)
    }

    fn fails(&self, command: &mut Command, places: &[&str]) -> String {
        let root = Path::new("/sys/fs/bpf").join(format!("{}-other", self.name));
        let own = [("--state-dir", self.other("state")), ("--bpffs", root.clone()), ("--socket", self.other("socket"))];
        for (flag, path) in own.iter().filter(|(flag, _)| !places.contains(flag)) {
            command.arg(flag).arg(path);
        }
        let output = command.args(places).stdout(Stdio::null()).stderr(Stdio::piped()).output().unwrap();
        let _ = std::fs::remove_dir(&root);
        assert!(!output.status.success(), "it was let");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}
