//! The mathematics can be used alone: a crate outside the workspace builds and runs with `dlm-diffusion` and nothing else of dlm.

use std::{path::Path, process::Command};

#[test]
fn a_crate_outside_the_workspace_builds_and_uses_the_mathematics() {
    let repository = dlm_tests::repository();
    let manifest = repository.join("tests/external/Cargo.toml");
    // Beside the workspace's own artifacts, so that nothing is built twice for the next run.
    let target = Path::new(env!("CARGO_BIN_EXE_dlm-under-test")).parent().unwrap().join("external");
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["run", "--quiet", "--manifest-path"])
        .arg(&manifest)
        .arg("--target-dir")
        .arg(&target)
        .current_dir(repository.join("tests/external"))
        .output()
        .expect("cargo starts");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}\n{stderr}");
    assert!(stdout.contains("[2, 2, 2]"), "{stdout}");
    let tree = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["tree", "--manifest-path"])
        .arg(&manifest)
        .args(["--prefix", "none", "--edges", "normal"])
        .output()
        .expect("cargo starts");
    let tree = String::from_utf8_lossy(&tree.stdout).into_owned();
    assert!(tree.contains("dlm-diffusion"), "{tree}");
    for unwanted in ["datafusion", "tokenizers", "dlm-model", "dlm-data"] {
        assert!(!tree.contains(unwanted), "{unwanted} came along:\n{tree}");
    }
}
