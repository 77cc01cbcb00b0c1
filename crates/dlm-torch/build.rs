//! Compiles the C++ additions and lets programs find libtorch without `LD_LIBRARY_PATH`.

use std::{env, error::Error, fs, os::unix::fs::symlink, path::PathBuf};

const FILES: [&str; 4] = ["additions.cpp", "checkpoint.cpp", "fused.cpp", "parallel.cpp"];

/// The loops of `kernels.cpp` once for each of these, all optimised whatever the profile: they are where the time goes.
const PLAIN: (&str, &[&str]) = ("plain", &[]);
const X86_64: [(&str, &[&str]); 2] = [
    ("avx2", &["-mavx2", "-mfma"]),
    ("avx512", &["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"]),
];

fn main() -> Result<(), Box<dyn Error>> {
    for file in FILES.iter().chain(&["kernels.cpp", "kernels.hpp", "additions.hpp", "parallel.hpp"]) {
        println!("cargo:rerun-if-changed=src/{file}");
    }
    // torch-sys says where it found the libraries.
    let lib = PathBuf::from(env::var("DEP_TCH_LIBTORCH_LIB").map_err(|_| "torch-sys named no libtorch folder")?);
    let lib = fs::canonicalize(&lib).map_err(|error| format!("libtorch at `{}`: {error}", lib.display()))?;
    let include = lib.parent().ok_or("libtorch's `lib` has no parent folder")?.join("include");
    let abi = env::var("LIBTORCH_CXX11_ABI").unwrap_or_else(|_| "1".to_owned());
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .warnings(false)
        .debug(false)
        .define("_GLIBCXX_USE_CXX11_ABI", abi.as_str())
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .files(FILES.map(|file| format!("src/{file}")))
        .compile("dlm_torch");
    // Behind what calls them.
    let is_x86_64 = env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64");
    for (level, flags) in X86_64.into_iter().filter(|_| is_x86_64).chain([PLAIN]) {
        let mut build = cc::Build::new();
        build.cpp(true).std("c++17").opt_level(3).debug(false).define("DLM_LEVEL", level).file("src/kernels.cpp");
        // Sums that say so may be taken in any order, and nobody reads errno; NaN keeps its meaning.
        for flag in ["-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd", "-fno-signed-zeros"] {
            build.flag(flag);
        }
        build.flags(flags).compile(&format!("dlm_kernels_{level}"));
    }
    // The static library comes after tch's own libraries on the link line, so what it needs is named again.
    println!("cargo:rustc-link-lib=torch_cpu");
    println!("cargo:rustc-link-lib=c10");

    // `cargo run` and `cargo test` put linked folders inside the target folder on the loader's path. This link is one,
    // so every test, example and doc test of every crate above finds libtorch, in any shell.
    let link = PathBuf::from(env::var("OUT_DIR")?).join("libtorch");
    let _ = fs::remove_file(&link); // absent on the first build
    symlink(&lib, &link)?;
    println!("cargo:rustc-link-search=native={}", link.display());
    // The binary gets an rpath from this, so that it runs from any folder.
    println!("cargo:libtorch_lib={}", lib.display());
    Ok(())
}
