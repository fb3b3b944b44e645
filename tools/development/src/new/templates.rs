//! The table of templates, with their files embedded. A file's text has keys such as `{{name}}` (`render`).

/// A kind of project, which decides what the host calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Service,
    Command,
    Plugin,
    Scheduler,
}

/// A language with its tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Language {
    Rust,
    JavaScript,
    Python,
    Go,
    C,
}

/// Path in the project, and text.
#[derive(Debug, Clone, Copy)]
pub(super) struct File(pub(super) &'static str, pub(super) &'static str);

/// A template.
#[derive(Debug)]
pub(super) struct Template {
    /// `KIND-LANGUAGE`.
    pub(super) name: &'static str,
    pub(super) about: &'static str,
    pub(super) kind: Kind,
    pub(super) language: Language,
    /// The file that a user changes first.
    pub(super) source: &'static str,
    /// The command of the unit tests.
    pub(super) test: &'static str,
    /// The command of the build, and the file that it makes.
    pub(super) build: &'static str,
    pub(super) module: &'static str,
    /// Files and folders whose change needs a build, as elements of a YAML list.
    pub(super) watch: &'static str,
    /// Options of the language's tool.
    pub(super) options: &'static str,
    pub(super) files: &'static [File],
}

macro_rules! file {
    ($path:literal, $source:literal) => {
        File($path, include_str!(concat!("../../templates/", $source)))
    };
}

macro_rules! wit {
    ($package:literal) => {
        File(
            concat!("wit/deps/", $package, "/", $package, ".wit"),
            include_str!(concat!("../../../../sample-workloads/visits/wit/deps/", $package, "/", $package, ".wit")),
        )
    };
}

impl Kind {
    /// The world in the project's WIT.
    pub(super) fn world(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Command => "command",
            Self::Plugin => "plugin",
            Self::Scheduler => "scheduler-plugin",
        }
    }

    /// The command that starts a built or unbuilt project.
    pub(super) fn start(self) -> &'static str {
        match self {
            Self::Service | Self::Plugin => "coracle run --dev",
            Self::Command => {
                "{{build}} && coracle push {{module}} {{image}} && kubectl create job {{name}} --image={{image}}"
            }
            Self::Scheduler => "{{build}} && coracle up --scheduler-config scheduler.yaml",
        }
    }

    /// What shows that it works.
    pub(super) fn answer(self) -> &'static str {
        match self {
            Self::Service => "`curl` on the printed address prints `hello from {{name}}`.",
            Self::Command => "`kubectl logs job/{{name}}` prints `hello from {{name}}`.",
            Self::Plugin => "`coracle call deployment/{{deployment}} greet '\"ada\"'` prints `\"hello ada\"`.",
            Self::Scheduler => {
                "Pods with `schedulerName: {{name}}` keep off nodes with the label `{{name}}/avoid`. \
                 `coracle explain-scheduling POD --scheduler-config scheduler.yaml` shows the plugin's verdicts."
            }
        }
    }

    /// Files of each language.
    pub(super) fn files(self) -> &'static [File] {
        match self {
            Self::Service | Self::Command => &[],
            Self::Plugin => &[file!("wit/plugin.wit", "common/plugin.wit"), KEYVALUE, CONFIG],
            Self::Scheduler => &[
                File("wit/plugin.wit", include_str!("../../../../scheduler/wit/plugin.wit")),
                file!("scheduler.yaml", "common/scheduler.yaml"),
            ],
        }
    }
}

impl Language {
    /// The tools that a build needs.
    pub(super) fn needs(self) -> &'static str {
        match self {
            Self::Rust => "Rust 1.85 or later with `rustup target add wasm32-wasip2`",
            Self::JavaScript => "Node.js 20 or later with npm",
            Self::Python => "Python 3.10 or later (Debian: with `python3-venv`)",
            Self::Go => "Go 1.24 or later",
            Self::C => {
                "clang and lld with the target wasm32, for a command with wasi-libc (Debian: `clang lld wasi-libc \
                 libclang-rt-dev-wasm32`), for a service with `cargo install wasm-component-ld`"
            }
        }
    }

    /// The version of WASI that its tools take.
    pub(super) fn wasi(self) -> &'static str {
        match self {
            Self::JavaScript => "0.2.10",
            Self::Rust | Self::Python | Self::Go | Self::C => "0.2.0",
        }
    }

    /// Files of each kind.
    pub(super) fn files(self) -> &'static [File] {
        match self {
            Self::Rust => &[file!(".gitignore", "rust/gitignore")],
            Self::JavaScript => &[
                file!(".gitignore", "js/gitignore"),
                file!("build.mjs", "js/build.mjs"),
                file!("package.json", "js/package.json"),
                file!("package-lock.json", "js/package-lock.json"),
            ],
            Self::Python => &[
                file!(".gitignore", "python/gitignore"),
                file!("build.py", "python/build.py"),
                file!("requirements.txt", "python/requirements.txt"),
            ],
            Self::Go => &[file!(".gitignore", "go/gitignore"), file!("go.mod", "go/go.mod")],
            Self::C => &[file!(".gitignore", "c/gitignore")],
        }
    }
}

impl Template {
    /// All files of a project.
    pub(super) fn all_files(&self) -> impl Iterator<Item = &'static File> {
        self.files.iter().chain(self.kind.files()).chain(COMMON).chain(self.language.files())
    }
}

/// Files of every project.
const COMMON: &[File] = &[file!("README.md", "common/README.md"), file!("coracle.yaml", "common/coracle.yaml")];
/// Host interfaces that a project's world may import.
const KEYVALUE: File = wit!("keyvalue");
const CONFIG: File = wit!("config");

const CARGO_TEST: &str = "cargo test";
const CARGO_BUILD: &str = "cargo build --release --target wasm32-wasip2";
const RUST_LIBRARY: &str = "target/wasm32-wasip2/release/{{library}}.wasm";
const BUILT: &str = "build/{{name}}.wasm";
const RUST_WATCH: &str = "src, wit, Cargo.toml, Cargo.lock";
const JS_TEST: &str = "npm test";
const JS_BUILD: &str = "node build.mjs";
const JS_WATCH: &str = "src, wit, build.mjs, package-lock.json";
/// What a component in JavaScript leaves out: the engine's interfaces that its world doesn't need.
const JS_CALLED: &str = "'http', 'fetch-event'";
const JS_ALONE: &str = "'http', 'fetch-event', 'clocks', 'random'";
const PYTHON_TEST: &str = "python3 -m unittest";
const PYTHON_BUILD: &str = "python3 build.py";

/// The templates, by kind.
pub(super) const TEMPLATES: &[Template] = &[
    Template {
        name: "http-rust",
        about: "An HTTP service in Rust",
        kind: Kind::Service,
        language: Language::Rust,
        source: "src/lib.rs",
        test: CARGO_TEST,
        build: CARGO_BUILD,
        module: RUST_LIBRARY,
        watch: "src, Cargo.toml, Cargo.lock",
        options: "",
        files: &[
            file!("Cargo.toml", "rust/http/Cargo.toml"),
            file!("Cargo.lock", "rust/http/Cargo.lock"),
            file!("src/lib.rs", "rust/http/lib.rs"),
        ],
    },
    Template {
        name: "http-js",
        about: "An HTTP service in JavaScript",
        kind: Kind::Service,
        language: Language::JavaScript,
        source: "src/routes.js",
        test: JS_TEST,
        build: JS_BUILD,
        module: BUILT,
        watch: JS_WATCH,
        options: "",
        files: &[
            file!("src/app.js", "js/http/app.js"),
            file!("src/routes.js", "js/http/routes.js"),
            file!("test/routes.test.js", "js/http/routes.test.js"),
            file!("wit/service.wit", "common/service.wit"),
            KEYVALUE,
            CONFIG,
        ],
    },
    Template {
        name: "http-python",
        about: "An HTTP service in Python",
        kind: Kind::Service,
        language: Language::Python,
        source: "routes.py",
        test: PYTHON_TEST,
        build: PYTHON_BUILD,
        module: BUILT,
        watch: "app.py, routes.py, wit, build.py, requirements.txt",
        options: "",
        files: &[
            file!("app.py", "python/http/app.py"),
            file!("routes.py", "python/http/routes.py"),
            file!("test_routes.py", "python/http/test_routes.py"),
            file!("wit/service.wit", "common/service.wit"),
            KEYVALUE,
            CONFIG,
        ],
    },
    Template {
        name: "http-c",
        about: "An HTTP service in C",
        kind: Kind::Service,
        language: Language::C,
        source: "routes.c",
        test: "mkdir -p build && cc routes.c test_routes.c -o build/test && build/test",
        build: "sh build.sh",
        module: BUILT,
        watch: "routes.c, routes.h, service.c, wit, build.sh",
        options: "",
        files: &[
            file!("routes.c", "c/http/routes.c"),
            file!("routes.h", "c/http/routes.h"),
            file!("service.c", "c/http/service.c"),
            file!("test_routes.c", "c/http/test_routes.c"),
            file!("build.sh", "c/http/build.sh"),
            file!("wit/service.wit", "common/service.wit"),
        ],
    },
    Template {
        name: "command-rust",
        about: "A command for Jobs and CronJobs in Rust",
        kind: Kind::Command,
        language: Language::Rust,
        source: "src/main.rs",
        test: CARGO_TEST,
        build: CARGO_BUILD,
        module: "target/wasm32-wasip2/release/{{package}}.wasm",
        watch: "src, Cargo.toml, Cargo.lock",
        options: "",
        files: &[
            file!("Cargo.toml", "rust/command/Cargo.toml"),
            file!("Cargo.lock", "rust/command/Cargo.lock"),
            file!("src/main.rs", "rust/command/main.rs"),
        ],
    },
    Template {
        name: "command-js",
        about: "A command for Jobs and CronJobs in JavaScript",
        kind: Kind::Command,
        language: Language::JavaScript,
        source: "src/greetings.js",
        test: JS_TEST,
        build: JS_BUILD,
        module: BUILT,
        watch: JS_WATCH,
        options: JS_CALLED,
        files: &[
            file!("src/app.js", "js/command/app.js"),
            file!("src/greetings.js", "js/command/greetings.js"),
            file!("test/greetings.test.js", "js/command/greetings.test.js"),
            file!("wit/command.wit", "common/command.wit"),
        ],
    },
    Template {
        name: "command-python",
        about: "A command for Jobs and CronJobs in Python",
        kind: Kind::Command,
        language: Language::Python,
        source: "greetings.py",
        test: PYTHON_TEST,
        build: PYTHON_BUILD,
        module: BUILT,
        watch: "app.py, greetings.py, wit, build.py, requirements.txt",
        options: "",
        files: &[
            file!("app.py", "python/command/app.py"),
            file!("greetings.py", "python/command/greetings.py"),
            file!("test_greetings.py", "python/command/test_greetings.py"),
            file!("wit/command.wit", "common/command.wit"),
        ],
    },
    Template {
        name: "command-go",
        about: "A command for Jobs and CronJobs in Go",
        kind: Kind::Command,
        language: Language::Go,
        source: "main.go",
        test: "go test",
        build: "GOOS=wasip1 GOARCH=wasm go build -o build/{{name}}.wasm .",
        module: BUILT,
        watch: "main.go, go.mod",
        options: "",
        files: &[file!("main.go", "go/main.go"), file!("main_test.go", "go/main_test.go")],
    },
    Template {
        name: "command-c",
        about: "A command for Jobs and CronJobs in C",
        kind: Kind::Command,
        language: Language::C,
        source: "main.c",
        test: "mkdir -p build && cc greetings.c test_greetings.c -o build/test && build/test",
        build: "mkdir -p build && clang --target=wasm32-wasi -O2 -Wall -Wextra main.c greetings.c -o build/{{name}}.wasm",
        module: BUILT,
        watch: "main.c, greetings.c, greetings.h",
        options: "",
        files: &[
            file!("main.c", "c/command/main.c"),
            file!("greetings.c", "c/command/greetings.c"),
            file!("greetings.h", "c/command/greetings.h"),
            file!("test_greetings.c", "c/command/test_greetings.c"),
        ],
    },
    Template {
        name: "plugin-rust",
        about: "A plugin, whose functions are called over HTTP, in Rust",
        kind: Kind::Plugin,
        language: Language::Rust,
        source: "src/lib.rs",
        test: CARGO_TEST,
        build: CARGO_BUILD,
        module: RUST_LIBRARY,
        watch: RUST_WATCH,
        options: "",
        files: &[
            file!("Cargo.toml", "rust/plugin/Cargo.toml"),
            file!("Cargo.lock", "rust/plugin/Cargo.lock"),
            file!("src/lib.rs", "rust/plugin/lib.rs"),
        ],
    },
    Template {
        name: "plugin-js",
        about: "A plugin, whose functions are called over HTTP, in JavaScript",
        kind: Kind::Plugin,
        language: Language::JavaScript,
        source: "src/app.js",
        test: JS_TEST,
        build: JS_BUILD,
        module: BUILT,
        watch: JS_WATCH,
        options: JS_CALLED,
        files: &[file!("src/app.js", "js/plugin/app.js"), file!("test/app.test.js", "js/plugin/app.test.js")],
    },
    Template {
        name: "plugin-python",
        about: "A plugin, whose functions are called over HTTP, in Python",
        kind: Kind::Plugin,
        language: Language::Python,
        source: "app.py",
        test: PYTHON_TEST,
        build: PYTHON_BUILD,
        module: BUILT,
        watch: "app.py, cards.py, wit, build.py, requirements.txt",
        options: "",
        files: &[
            file!("app.py", "python/plugin/app.py"),
            file!("cards.py", "python/plugin/cards.py"),
            file!("test_cards.py", "python/plugin/test_cards.py"),
        ],
    },
    Template {
        name: "scheduler-plugin-rust",
        about: "A plugin of the scheduler in Rust",
        kind: Kind::Scheduler,
        language: Language::Rust,
        source: "src/lib.rs",
        test: CARGO_TEST,
        build: CARGO_BUILD,
        module: RUST_LIBRARY,
        watch: RUST_WATCH,
        options: "",
        files: &[
            file!("Cargo.toml", "rust/scheduler/Cargo.toml"),
            file!("Cargo.lock", "rust/scheduler/Cargo.lock"),
            file!("src/lib.rs", "rust/scheduler/lib.rs"),
        ],
    },
    Template {
        name: "scheduler-plugin-js",
        about: "A plugin of the scheduler in JavaScript",
        kind: Kind::Scheduler,
        language: Language::JavaScript,
        source: "src/app.js",
        test: JS_TEST,
        build: JS_BUILD,
        module: BUILT,
        watch: JS_WATCH,
        options: JS_ALONE,
        files: &[file!("src/app.js", "js/scheduler/app.js"), file!("test/app.test.js", "js/scheduler/app.test.js")],
    },
    Template {
        name: "scheduler-plugin-python",
        about: "A plugin of the scheduler in Python",
        kind: Kind::Scheduler,
        language: Language::Python,
        source: "policy.py",
        test: PYTHON_TEST,
        build: PYTHON_BUILD,
        module: BUILT,
        watch: "app.py, plugin.py, policy.py, wit, build.py, requirements.txt",
        options: "",
        files: &[
            file!("app.py", "python/scheduler/app.py"),
            file!("plugin.py", "python/scheduler/plugin.py"),
            file!("policy.py", "python/scheduler/policy.py"),
            file!("test_policy.py", "python/scheduler/test_policy.py"),
        ],
    },
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    fn files_below(folder: &Path, into: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            if entry.path().is_dir() {
                files_below(&entry.path(), into);
            } else {
                into.push(std::fs::read_to_string(entry.path()).unwrap());
            }
        }
    }

    /// A file that no template has would be compiled and tested by no script.
    #[test]
    fn each_file_belongs_to_a_template() {
        let all = TEMPLATES.iter().flat_map(Template::all_files).map(|File(_, text)| *text);
        let all: BTreeSet<&str> = all.collect();
        let mut there = Vec::new();
        files_below(&Path::new(env!("CARGO_MANIFEST_DIR")).join("templates"), &mut there);
        assert!(there.len() > 30);
        for text in &there {
            assert!(all.contains(text.as_str()), "a file of no template: {text}");
        }
    }

    /// The backtrace of a trap has the names of functions only if the module has them.
    #[test]
    fn no_build_strips_the_names_of_functions() {
        for template in TEMPLATES {
            let files = template.all_files().map(|File(path, text)| (*path, *text));
            let build = ("the build command", template.build);
            for (path, text) in files.chain([build]).filter(|(path, _)| !path.ends_with("package-lock.json")) {
                for strips in ["strip = true", "strip = \"symbols\"", "--strip-all", "-ldflags", "-Wl,-s", "--strip "] {
                    assert!(!text.contains(strips), "{path} has {strips}");
                }
            }
        }
    }

    #[test]
    fn names_are_of_kind_and_language() {
        let names: BTreeSet<&str> = TEMPLATES.iter().map(|template| template.name).collect();
        assert_eq!(names.len(), TEMPLATES.len());
        for template in TEMPLATES {
            let kind = match template.kind {
                Kind::Service => "http",
                Kind::Command => "command",
                Kind::Plugin => "plugin",
                Kind::Scheduler => "scheduler-plugin",
            };
            let language = match template.language {
                Language::Rust => "rust",
                Language::JavaScript => "js",
                Language::Python => "python",
                Language::Go => "go",
                Language::C => "c",
            };
            assert_eq!(template.name, format!("{kind}-{language}"));
        }
    }
}
