//! `cargo xtask`: see [`USAGE`].
#![forbid(unsafe_code)]

use std::process::ExitCode;

use xtask::{ci, codegen, cuda, fuzz, root, tidy};

const USAGE: &str = "\
cargo xtask tidy [--write]      check what no compiler checks: who imports whom, sizes, names, purity, unsafe, documents;
                                --write lowers the numbers of tools/xtask/ratchet.txt to what the code has reached
cargo xtask codegen [--check]   make protocol/src/generated from protocol/schema; --check only compares
cargo xtask ci [--quick]        everything the build machine runs; --quick leaves out the simulation, the chaos and the demo
cargo xtask cuda                fetch CUDA's toolkit, build the binary with it, and start that; the first time takes most of
                                an hour, and needs no GPU
cargo xtask sim [--seeds N] …   simulate whole nodes on disks that fail; what else it takes: cargo xtask sim --help
cargo xtask chaos [--rounds N] [--seed S] [--discard] [--model M] …
                                kill real nodes at random moments and audit what they lost
cargo xtask fuzz [TARGET …] [--seconds N] …
                                try the decoders with inputs made up for it, guided by what they reach; all of them, 60 s
                                each, if none is named; what else it takes: cargo xtask fuzz --help
cargo xtask help                this text
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments[..] {
        ["tidy"] => tidy::run(&root(), false),
        ["tidy", "--write"] => tidy::run(&root(), true),
        ["codegen"] => codegen::write(&root()).map(|()| true),
        ["codegen", "--check"] => codegen::check(&root()),
        ["ci"] => ci::run(&root(), ci::Extent::Full),
        ["ci", "--quick"] => ci::run(&root(), ci::Extent::Quick),
        ["cuda"] => cuda::run(&root()),
        ["sim", ref more @ ..] => ci::run_simulation(&root(), more),
        ["chaos", ref more @ ..] => ci::run_chaos(&root(), more),
        ["fuzz", "--help" | "-h"] => {
            print!("{}", fuzz::USAGE);
            Ok(true)
        }
        ["fuzz", ref more @ ..] => fuzz::run(&root(), more),
        ["help" | "--help" | "-h"] => {
            print!("{USAGE}");
            Ok(true)
        }
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
