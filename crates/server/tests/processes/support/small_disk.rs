//! A small file system of its own for a node: a tmpfs in a mount namespace that nobody else sees, where the kernel permits that.

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::Node;

/// A file that takes room until there is to be more.
const BALLAST: &str = "ballast";
const BALLAST_BYTES: u64 = 256 << 20;

/// A file system for a node's data directory, which is gone with this.
pub struct SmallDisk {
    /// Where it is mounted.
    directory: PathBuf,
    /// Whose namespace it is in. It ends when its standard input does, with the test at the latest.
    holder: Child,
    /// How to come there.
    enter: Vec<String>,
}

impl SmallDisk {
    /// Gives a node that was never started a disk with room for so many bytes. `None` where that is not permitted, and says so.
    pub fn give(node: &mut Node, bytes: u64) -> Option<SmallDisk> {
        let directory = node.data_dir().with_extension("disk");
        std::fs::create_dir_all(&directory).unwrap();
        // Whoever is not root becomes it in a namespace of users.
        let ways = [
            (&["--mount"][..], &["--mount"][..]),
            (&["--user", "--map-root-user", "--mount"], &["--user", "--preserve-credentials", "--mount"]),
        ];
        let found = ways.into_iter().find_map(|(make, enter)| {
            let holder = hold(make, &directory, bytes)?;
            let pid = ["--target".to_owned(), holder.id().to_string()];
            let enter: Vec<String> =
                pid.into_iter().chain(enter.iter().map(|flag| (*flag).to_owned())).collect();
            inside(&enter, "true").status().is_ok_and(|status| status.success()).then_some((holder, enter))
        });
        let Some((holder, enter)) = found else {
            println!("SKIPPED: small disks, since namespaces are not permitted here");
            return None;
        };
        let disk = SmallDisk { directory, holder, enter };
        node.set_binary(disk.program(&super::binary()));
        node.set_argument("--data-dir", &disk.directory.join("data").display().to_string());
        Some(disk)
    }

    /// A program that does in the namespace what `program` does.
    fn program(&self, program: &Path) -> PathBuf {
        let path = self.directory.with_extension("sh");
        let (enter, program) = (self.enter.join(" "), program.display());
        std::fs::write(&path, format!("#!/bin/sh\nexec nsenter {enter} -- '{program}' \"$@\"\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// Makes room on it.
    pub fn relieve(&self) {
        let removed = inside(&self.enter, "rm").arg(self.directory.join(BALLAST)).status();
        assert!(removed.unwrap().success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}

/// A program in the namespace to which `enter` leads.
fn inside(enter: &[String], program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.args(enter).args(["--", program]);
    command
}

/// A process that holds a namespace in which a tmpfs is mounted there.
fn hold(flags: &[&str], directory: &Path, bytes: u64) -> Option<Child> {
    let size = bytes + BALLAST_BYTES;
    let script = format!(
        "mount -t tmpfs -o size={size} small \"$0\" && fallocate -l {BALLAST_BYTES} \"$0/{BALLAST}\" && echo mounted && exec cat"
    );
    let mut command = Command::new("unshare");
    command.args(flags).args(["--", "sh", "-c", &script]).arg(directory);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut holder = command.spawn().ok()?;
    let mut said = String::new();
    BufReader::new(holder.stdout.as_mut()?).read_line(&mut said).ok()?;
    if said.trim() == "mounted" {
        return Some(holder);
    }
    let _ = holder.wait();
    None
}
