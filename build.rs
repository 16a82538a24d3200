//! Links LAPACK after libtorch and leaves the place of libtorch in what is built.

use std::env;
use std::path::Path;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // Both come from torch-sys: from its build script, or from `.cargo/local.toml`, which stands in for it.
    println!("cargo:rerun-if-env-changed=DEP_TCH_LIBTORCH_LIB");
    println!("cargo:rerun-if-env-changed=DEP_TCH_LIBTCH");
    let torch = env::var("DEP_TCH_LIBTORCH_LIB").unwrap_or_else(|_| "libtorch/lib".to_owned());
    let torch = Path::new(&torch).canonicalize().unwrap_or_else(|_| torch.clone().into());
    println!("cargo:rustc-link-search=native={}", torch.display());
    // libtorch carries MKL, whose BLAS symbols are global: whoever stands first in the link order serves both. With
    // OpenBLAS first, batched products inside libtorch run at a third of their speed. torch_cuda is never linked: the
    // library loads it at run time where there is one, so that one build serves CPU and GPU.
    println!("cargo:rustc-link-lib=dylib=torch_cpu");
    println!("cargo:rustc-link-lib=dylib=openblas");
    // Rust links with --as-needed, which drops a library whose symbols nothing calls directly: libtorch would then come
    // in behind OpenBLAS, as a dependency of the shim. Named again without it, it keeps its first place.
    println!("cargo:rustc-link-arg=-Wl,--push-state,--no-as-needed,-ltorch_cpu,--pop-state");
    // Binaries, tests and doctests find libtorch without LD_LIBRARY_PATH.
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", torch.display());
    println!("cargo:libtorch={}", torch.display());
    if let Ok(libtch) = env::var("DEP_TCH_LIBTCH") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{libtch}");
        println!("cargo:libtch={libtch}");
    }
}
