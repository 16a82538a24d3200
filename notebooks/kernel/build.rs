//! Leaves the place of libtorch in the shared object that cells load, and keeps libtorch before OpenBLAS in it.

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-link-arg=-Wl,--push-state,--no-as-needed,-ltorch_cpu,--pop-state");
    for name in ["DEP_HEADSCOPE_LIBTORCH", "DEP_HEADSCOPE_LIBTCH"] {
        println!("cargo:rerun-if-env-changed={name}");
        if let Ok(folder) = env::var(name) {
            println!("cargo:rustc-link-arg=-Wl,-rpath,{folder}");
        }
    }
}
