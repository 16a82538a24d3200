#!/bin/sh
# Stands in for cargo inside a kernel. evcxr calls cargo for every cell; here all dependencies are built and only the cell
# itself is left to compile, so rustc is called directly. Cargo would look over 300 fresh crates first (half a second),
# lock a build folder for each kernel, and build everything anew under evcxr's own flags.
# `@NAME@` is filled in by kernel.py.

built=
while [ "$1" = --offline ]; do shift; done

case $1 in
    build)
        mkdir -p cells
        # The variables that this cell defines and loses if it ends early: stored at its end, before the closing line.
        lost=
        if grep -qx -e 'Ok(())})();' -e '})) { *' src/lib.rs; then
            lost=$(sed -n -e '/^Ok(())})();$/q' -e '/^})) { *$/q' \
                -e 's/^evcxr_variable_store\.put_variable::<.*(stringify!(\([^)]*\)), .*/`\1`/p' src/lib.rs | sort -u)
            [ -z "$lost" ] || lost="\\nNothing that this cell defines is kept: $(echo $lost | sed 's/ /, /g'). Let what works stand in a cell of its own."
        fi
        # evcxr prints an error that `?` handed on, or that the cell panicked, and reports success: say that it is an
        # error, and on the stream that keeps its order. What went to the other stream gets a moment to arrive, or it
        # would be shown under the next cell. No line is added, so that messages point at the right ones.
        sed -i -e 's/eprintln!("{}", error);$/println!("Error: {}@LOST@", error);/' \
            -e 's/println!("EVCXR_PANIC_NOTIFICATION");$/println!("Error: this cell panicked@LOST@"); &/' \
            -e "s/@LOST@/$(printf %s "$lost" | sed 's/[&\\/]/\\&/g')/" \
            -e 's/^evcxr_variable_store$/::std::thread::sleep(::std::time::Duration::from_millis(15)); &/' src/lib.rs
        # Where evcxr gives up on showing the last expression as what it is, for whatever error the cell had, it prints it.
        # Most often the error is mended by then: try once more.
        if grep -qx 'evcxr_send_text_plain(&format!("{:?}",&(' src/lib.rs; then
            cp src/lib.rs printed.rs
            sed -i -e 's/^evcxr_send_text_plain(&format!("{:?}",&($/(((/' -e 's/^)));$/))).evcxr_display();/' src/lib.rs
            @RUSTC@ @FLAGS@ --emit=link --out-dir cells src/lib.rs 2>/dev/null && built=1 || cp printed.rs src/lib.rs
        fi
        [ -n "$built" ] || @RUSTC@ @FLAGS@ --emit=link --out-dir cells src/lib.rs || exit
        printf '{"reason":"compiler-artifact","target":{"name":"ctx"},"filenames":["%s/cells/libctx.so"]}\n' "$PWD"
        exit
        ;;
    check)
        # evcxr asks only if it cannot name the type of a variable. The compiler knows what it is. Of a variable that borrows
        # it complains that it does not live for ever, which a closure in a cell's own scope need not.
        mkdir -p cells
        complaints=$(@RUSTC@ @FLAGS@ --emit=metadata --out-dir cells src/lib.rs 2>&1)
        status=$?
        if ! printf %s "$complaints" | grep -o '"code":{"code":"E[0-9]*"' | grep -qv -e E0373 -e E0597 -e E0521; then
            hints=$(@PYTHON@ @HINT@ @RUSTC@ @FLAGS@) && [ -n "$hints" ] && printf '%s\n' "$hints" && exit 101
        fi
        printf '%s\n' "$complaints" >&2
        exit $status
        ;;
    metadata)
        ours= others=
        section=
        while IFS= read -r line; do
            case $line in
                *'[dependencies]') section=1 ;;
                *'headscope = '*) ours=1 ;;
                *[a-z]*) [ -z "$section" ] || others=1 ;;
            esac
        done <Cargo.toml
        if [ -n "$others" ]; then
            echo "this kernel has the library's crates only. To use another one, add it to notebooks/kernel/Cargo.toml and" >&2
            echo "src/lib.rs, run \`make kernel\`, and restart the kernel" >&2
            exit 1
        fi
        if [ -n "$ours" ]; then exec sed "s|@HERE@|$PWD|g" @METADATA@; else exec sed "s|@HERE@|$PWD|g" @METADATA@.empty; fi
        ;;
    locate-project)
        printf '{"root":"%s/Cargo.toml"}\n' "$PWD"
        exit
        ;;
    clean) exit ;;
esac

# Questions about the compiler.
export CARGO_HOME=@CARGO_HOME@ PATH=@PATH@
exec @CARGO@ "$@"
