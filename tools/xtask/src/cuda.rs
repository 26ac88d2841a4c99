//! Builds the binary with CUDA, on a machine that need have neither CUDA's toolkit nor a GPU, and starts it.
//!
//! The toolkit comes as packages of Python's, into `target/cuda`. The tensor library asks for CUDA's libraries to be linked,
//! with which a binary would not start where they are missing; a copy of its manifest that has them loaded at run time
//! stands in for it, and cargo is told so in a workspace of links to this one, whose lock file is its own.
//!
//! The first build takes most of an hour, for the library's kernels; they are kept in `target/cuda-build`. No part of CI
//! does this.

mod trial;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, os::unix::fs as unix};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// What of the toolkit is needed, in versions that go together.
const PACKAGES: [&str; 8] = [
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-cccl==13.0.85",
    "nvidia-cublas==13.0.2.14",
    "nvidia-curand==10.4.0.35",
    "nvidia-cuda-nvrtc==13.0.88",
];
/// Libraries that come under the name of their version alone.
const VERSIONED: [(&str, &str); 4] = [
    ("libcublas.so.13", "libcublas.so"),
    ("libcublasLt.so.13", "libcublasLt.so"),
    ("libcurand.so.10", "libcurand.so"),
    ("libnvrtc.so.13", "libnvrtc.so"),
];
/// Which GPUs kernels are compiled for, unless `CUDA_COMPUTE_CAP` says otherwise: Hopper (H100, H200), and no other.
const COMPUTE_CAP: &str = "90";
/// The package whose manifest is changed, and the one word in it.
const TENSORS: &str = "candle-core";
const LINKED: &str = "\"dynamic-linking\"";
const LOADED: &str = "\"dynamic-loading\"";
/// What of the root a workspace is made of.
const WORKSPACE: [&str; 7] = ["Cargo.toml", "protocol", "engine", "transport", "inference", "bench", "tools"];

/// Builds the binary in `root` and starts it; says whether all went well.
pub fn run(root: &Path) -> Result<bool> {
    let home = root.join("target/cuda");
    fs::create_dir_all(&home).with_context(|| format!("making {}", home.display()))?;
    let toolkit = toolkit(&home)?;
    let tensors = tensors(root, &home)?;
    let workspace = workspace(root, &home)?;
    let binary = build(root, &workspace, &toolkit, &tensors)?;
    trial::run(&binary, &toolkit)
}

/// Fetches the toolkit, unless it is there, and brings it into the form that compilers look for.
fn toolkit(home: &Path) -> Result<PathBuf> {
    let wheels = home.join("wheels");
    let toolkit = wheels.join("nvidia/cu13");
    let complete = wheels.join("complete");
    if fs::read_to_string(&complete).is_ok_and(|text| text == PACKAGES.join("\n")) {
        println!("toolkit: {} (there already)", toolkit.display());
        return Ok(toolkit);
    }
    if wheels.exists() {
        fs::remove_dir_all(&wheels).with_context(|| format!("removing {}", wheels.display()))?;
    }
    println!("toolkit: fetching {} packages", PACKAGES.len());
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--target"]);
    let status = pip.arg(&wheels).args(PACKAGES).status().context("running python3 -m pip; install Python with pip")?;
    ensure!(status.success(), "pip did not install the toolkit: {status}");
    for folder in ["bin", "nvvm/bin"] {
        make_executable(&toolkit.join(folder))?;
    }
    link("lib", &toolkit.join("lib64"))?;
    for (versioned, plain) in VERSIONED {
        ensure!(toolkit.join("lib").join(versioned).is_file(), "the toolkit has no {versioned}");
        link(versioned, &toolkit.join("lib").join(plain))?;
    }
    let (from, to) = (toolkit.join("lib/libcudart_static.a"), toolkit.join("lib/libcudart.a"));
    fs::copy(&from, &to).with_context(|| format!("copying {}", from.display()))?;
    fs::write(&complete, PACKAGES.join("\n")).with_context(|| format!("writing {}", complete.display()))?;
    Ok(toolkit)
}

fn make_executable(folder: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let entries = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        let mode = fs::metadata(&path)?.permissions().mode();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode | 0o111))
            .with_context(|| format!("making {} executable", path.display()))?;
    }
    Ok(())
}

/// Makes `at` a link to `target`, whatever it was.
fn link(target: impl AsRef<Path>, at: &Path) -> Result<()> {
    if at.symlink_metadata().is_ok() {
        fs::remove_file(at).with_context(|| format!("removing {}", at.display()))?;
    }
    unix::symlink(&target, at).with_context(|| format!("linking {}", at.display()))
}

/// A copy of the tensor library that has CUDA's libraries loaded at run time.
fn tensors(root: &Path, home: &Path) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo).args(["metadata", "--format-version", "1", "--locked"]).current_dir(root).output();
    let output = output.context("running `cargo metadata`")?;
    if !output.status.success() {
        bail!("`cargo metadata` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let value: Value = serde_json::from_slice(&output.stdout).context("reading the answer of `cargo metadata`")?;
    let packages = value["packages"].as_array().context("no packages in the answer of `cargo metadata`")?;
    let found = packages.iter().find(|package| package["name"] == TENSORS);
    let manifest = found.and_then(|package| package["manifest_path"].as_str());
    let source = manifest.and_then(|path| Path::new(path).parent());
    let source = source.with_context(|| format!("no {TENSORS} in the answer of `cargo metadata`"))?;
    let copy = home.join(TENSORS);
    copy_changed(source, &copy)?;
    Ok(copy)
}

/// Copies the tensor library, its manifest changed, where that is not what is there: what was built of it stays good.
fn copy_changed(source: &Path, copy: &Path) -> Result<()> {
    copy_folder(source, copy)?;
    let path = source.join("Cargo.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    write_if_changed(&copy.join("Cargo.toml"), loaded_at_run_time(&text)?.as_bytes())
}

/// The manifest with the one word changed.
fn loaded_at_run_time(manifest: &str) -> Result<String> {
    let count = manifest.matches(LINKED).count();
    let what = "this version of it must be looked at before it is built";
    ensure!(count == 1, "the manifest of {TENSORS} has {LINKED} {count} times, not once; {what}");
    Ok(manifest.replace(LINKED, LOADED))
}

/// Copies all but manifests. What is there besides is left.
fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("making {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("reading {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else if entry.file_name() != "Cargo.toml" {
            let bytes = fs::read(entry.path()).with_context(|| format!("reading {}", entry.path().display()))?;
            write_if_changed(&target, &bytes)?;
        }
    }
    Ok(())
}

fn write_if_changed(path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|found| found == bytes) {
        return Ok(());
    }
    fs::write(path, bytes).with_context(|| format!("writing {}", path.display()))
}

/// A workspace of links to this one. Its lock file is its own: the copy of the tensor library would stand in ours.
fn workspace(root: &Path, home: &Path) -> Result<PathBuf> {
    let workspace = home.join("workspace");
    fs::create_dir_all(&workspace).with_context(|| format!("making {}", workspace.display()))?;
    for name in WORKSPACE {
        link(root.join(name), &workspace.join(name))?;
    }
    let lock = workspace.join("Cargo.lock");
    fs::copy(root.join("Cargo.lock"), &lock).with_context(|| format!("writing {}", lock.display()))?;
    Ok(workspace)
}

/// Builds the binary as users run it, and says where it is.
fn build(root: &Path, workspace: &Path, toolkit: &Path, tensors: &Path) -> Result<PathBuf> {
    let target = root.join("target/cuda-build");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut cargo = Command::new(cargo);
    let patch = format!("patch.crates-io.{TENSORS}.path={:?}", tensors.display().to_string());
    cargo.args(["build", "--release", "--package", "thalweg", "--features", "cuda", "--config", &patch]);
    cargo.current_dir(workspace).env("CARGO_TARGET_DIR", &target);
    environment(&mut cargo, toolkit)?;
    println!("build: cargo build --release --features cuda; the first one takes most of an hour");
    let status = cargo.status().context("running cargo")?;
    ensure!(status.success(), "the build failed: {status}");
    Ok(target.join("release/thalweg"))
}

/// What compilers, and the build scripts that call them, look for.
fn environment(command: &mut Command, toolkit: &Path) -> Result<()> {
    for name in ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT", "CUDA_TOOLKIT_ROOT_DIR"] {
        command.env(name, toolkit);
    }
    for (name, folder) in [("PATH", "bin"), ("LD_LIBRARY_PATH", "lib")] {
        let others = std::env::var_os(name).unwrap_or_default();
        let others = std::env::split_paths(&others).filter(|path| !path.as_os_str().is_empty());
        let paths = std::env::join_paths([toolkit.join(folder)].into_iter().chain(others));
        command.env(name, paths.with_context(|| format!("{name} with {}", toolkit.display()))?);
    }
    if std::env::var_os("CUDA_COMPUTE_CAP").is_none() {
        command.env("CUDA_COMPUTE_CAP", COMPUTE_CAP);
    }
    command.env("RUSTFLAGS", format!("-L native={}", toolkit.join("lib").display()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_one_word_of_the_manifest_changes() {
        let check = |manifest: &str, expected: Option<&str>| {
            assert_eq!(loaded_at_run_time(manifest).ok().as_deref(), expected, "{manifest}");
        };
        check("features = [\"std\", \"dynamic-linking\"]", Some("features = [\"std\", \"dynamic-loading\"]"));
        check("features = [\"std\"]", None);
        check("[\"dynamic-linking\", \"dynamic-linking\"]", None);
    }

    #[test]
    fn a_copy_is_written_again_only_where_it_differs() {
        let folder = std::env::temp_dir().join(format!("thalweg-xtask-cuda-{}", std::process::id()));
        let (from, to) = (folder.join("from"), folder.join("to"));
        fs::create_dir_all(from.join("src")).expect("made");
        let write = |name: &str, text: &str| fs::write(from.join(name), text).expect("written");
        let copy = || {
            copy_changed(&from, &to).expect("copied");
            let when = |name: &str| fs::metadata(to.join(name)).and_then(|found| found.modified()).expect("there");
            let text = |name: &str| fs::read_to_string(to.join(name)).expect("read");
            ([when("Cargo.toml"), when("src/lib.rs")], [text("Cargo.toml"), text("src/lib.rs")])
        };
        write("Cargo.toml", "a = [\"dynamic-linking\"]");
        write("src/lib.rs", "one");
        let first = copy();
        assert_eq!(first.1, ["a = [\"dynamic-loading\"]", "one"]);
        assert_eq!(copy(), first);
        write("Cargo.toml", "b = [\"dynamic-linking\"]");
        write("src/lib.rs", "two");
        assert_eq!(copy().1, ["b = [\"dynamic-loading\"]", "two"]);
        fs::remove_dir_all(&folder).expect("removed");
    }
}
