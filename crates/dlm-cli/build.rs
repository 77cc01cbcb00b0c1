//! Lets the binary find libtorch from any folder.

fn main() {
    // `dlm-torch` says where the libraries are.
    if let Ok(lib) = std::env::var("DEP_DLM_TORCH_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg-bins=-Wl,-rpath,{lib}");
    }
}
