#!/bin/sh
# Stands in for cargo inside a kernel. evcxr calls cargo for every cell; here all dependencies are built and only the cell
# itself is left to compile, so rustc is called directly. Cargo would look over 300 fresh crates first (half a second),
# lock a build folder for each kernel, and build everything anew under evcxr's own flags.
# `@NAME@` is filled in by kernel.py.

real() {
    CARGO_HOME=@CARGO_HOME@ PATH=@PATH@ RUSTUP_TOOLCHAIN=$outer_toolchain
    export CARGO_HOME PATH
    if [ -n "$outer_toolchain" ]; then export RUSTUP_TOOLCHAIN; else unset RUSTUP_TOOLCHAIN; fi
    exec @CARGO@ "$@"
}
outer_toolchain=$HEADSCOPE_TOOLCHAIN

while [ "$1" = --offline ]; do shift; done
command=$1

# A session that asked for another crate (`:dep NAME`) has lines of its own in the manifest that evcxr wrote.
others= ours=
if [ -f Cargo.toml ]; then
    section=
    while IFS= read -r line; do
        case $line in
            '[dependencies]') section=1 ;;
            'headscope = '*) ours=1 ;;
            '') ;;
            *) [ -z "$section" ] || others="$others$line
" ;;
        esac
    done <Cargo.toml
fi

# ... and is built by cargo, in the clone's own build folder, where all that both need is there already.
if [ -n "$others" ]; then
    case $command in
        build | check)
            mkdir -p other
            [ -f other/Cargo.lock ] || cp @LOCK@ other/Cargo.lock
            {
                printf '[package]\nname = "ctx"\nversion = "1.0.0"\nedition = "2024"\n[workspace]\n'
                printf '[lib]\ncrate-type = ["cdylib"]\npath = "../src/lib.rs"\n[dependencies]\n'
                printf '%s%s\n' "$others" '@DEPENDENCY@'
            } >other/Cargo.toml
            unset RUSTFLAGS CARGO_NET_OFFLINE
            export CARGO_TARGET_DIR=@TARGET@ CARGO_BUILD_BUILD_DIR=@TARGET@
            real "$command" --manifest-path other/Cargo.toml --message-format=json @PROFILE@
            ;;
        metadata | locate-project) real "$@" ;;
    esac
fi

case $command in
    build)
        mkdir -p cells
        # evcxr prints an error that `?` handed on, or that the cell panicked, and reports success: say that it is an
        # error, and on the stream that keeps its order. What went to the other stream gets a moment to arrive, or it
        # would be shown under the next cell. No line is added, so that messages point at the right ones.
        sed -i -e 's/eprintln!("{}", error);$/println!("Error: {}", error);/' \
            -e 's/println!("EVCXR_PANIC_NOTIFICATION");$/println!("Error: this cell panicked"); &/' \
            -e 's/^evcxr_variable_store$/::std::thread::sleep(::std::time::Duration::from_millis(15)); &/' src/lib.rs
        @RUSTC@ @FLAGS@ --emit=link --out-dir cells src/lib.rs || exit
        printf '{"reason":"compiler-artifact","target":{"name":"ctx"},"filenames":["%s/cells/libctx.so"]}\n' "$PWD"
        ;;
    check)
        mkdir -p cells
        exec @RUSTC@ @FLAGS@ --emit=metadata --out-dir cells src/lib.rs
        ;;
    metadata)
        case "$*" in
            *"--manifest-path $PWD/Cargo.toml"* | "metadata --format-version"*)
                if grep -q evcxr_dummy_validate_dep Cargo.toml; then real "$@"; fi
                if [ -n "$ours" ]; then known=@METADATA@; else known=@METADATA@.empty; fi
                exec sed "s|@HERE@|$PWD|g" "$known"
                ;;
        esac
        real "$@"
        ;;
    locate-project) printf '{"root":"%s/Cargo.toml"}\n' "$PWD" ;;
    clean) ;;
    *) real "$@" ;;
esac
