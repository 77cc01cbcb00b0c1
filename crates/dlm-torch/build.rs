//! Compiles the C++ additions and lets programs find libtorch without `LD_LIBRARY_PATH`.

use std::{env, error::Error, fs, os::unix::fs::symlink, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=src/additions.cpp");
    // torch-sys says where it found the libraries.
    let lib = PathBuf::from(env::var("DEP_TCH_LIBTORCH_LIB").map_err(|_| "torch-sys named no libtorch folder")?);
    let lib = fs::canonicalize(&lib).map_err(|error| format!("libtorch at `{}`: {error}", lib.display()))?;
    let include = lib.parent().ok_or("libtorch's `lib` has no parent folder")?.join("include");
    let abi = env::var("LIBTORCH_CXX11_ABI").unwrap_or_else(|_| "1".to_owned());
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .warnings(false)
        .define("_GLIBCXX_USE_CXX11_ABI", abi.as_str())
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .file("src/additions.cpp")
        .compile("dlm_torch");
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
