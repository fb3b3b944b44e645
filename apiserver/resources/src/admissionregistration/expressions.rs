//! Expressions of policies and of match conditions: what they may name, and what they have to come to.

use apiserver_cel::types::{DeclType, Type};
use apiserver_cel::{Env, Program};

/// Compiles the expressions of one policy, whose variables name those before them.
pub struct Compiler {
    env: Env,
    /// For messages, which may not ask what is allowed.
    without_authorizer: Env,
    has_variables: bool,
}

/// The type of `variables`.
const VARIABLES: &str = "kubernetes.variables";

/// What an expression has to come to: a type, and the name that messages give it.
pub type Expected<'a> = &'a [(Type, &'a str)];

/// Of a validation or a match condition.
pub const BOOL: Expected<'static> = &[(Type::Bool, "bool")];
/// Of a message.
pub const STRING: Expected<'static> = &[(Type::String, "string")];
/// Of an audit annotation.
pub const STRING_OR_NULL: Expected<'static> = &[(Type::String, "string"), (Type::Null, "null_type")];

fn text() -> DeclType {
    unbounded(Type::String)
}

fn unbounded(ty: Type) -> DeclType {
    DeclType { max_elements: -1, ..DeclType::scalar(ty, 0) }
}

fn texts() -> DeclType {
    DeclType::list(text(), -1)
}

fn text_map() -> DeclType {
    DeclType::map(text(), -1)
}

fn request() -> DeclType {
    let kind = || {
        let fields = ["group", "version", "kind"].map(|name| (name, text()));
        DeclType::object("kubernetes.GroupVersionKind", fields)
    };
    let resource = || {
        let fields = ["group", "version", "resource"].map(|name| (name, text()));
        DeclType::object("kubernetes.GroupVersionResource", fields)
    };
    let user = DeclType::object(
        "kubernetes.UserInfo",
        [("username", text()), ("uid", text()), ("groups", texts()), ("extra", DeclType::map(texts(), -1))],
    );
    DeclType::object(
        "kubernetes.AdmissionRequest",
        [
            ("kind", kind()),
            ("resource", resource()),
            ("subResource", text()),
            ("requestKind", kind()),
            ("requestResource", resource()),
            ("requestSubResource", text()),
            ("name", text()),
            ("namespace", text()),
            ("operation", text()),
            ("userInfo", user),
            ("dryRun", unbounded(Type::Bool)),
            ("options", unbounded(Type::Dyn)),
        ],
    )
}

fn namespace() -> DeclType {
    let metadata = DeclType::object(
        "kubernetes.NamespaceMetadata",
        [
            ("name", text()),
            ("generateName", text()),
            ("namespace", text()),
            ("labels", text_map()),
            ("annotations", text_map()),
            ("UID", text()),
            ("creationTimestamp", unbounded(Type::Timestamp)),
            ("deletionGracePeriodSeconds", unbounded(Type::Int)),
            ("deletionTimestamp", unbounded(Type::Timestamp)),
            ("generation", unbounded(Type::Int)),
            ("resourceVersion", text()),
            ("finalizers", texts()),
        ],
    );
    let spec = DeclType::object("kubernetes.NamespaceSpec", [("finalizers", texts())]);
    let status = DeclType::object("kubernetes.NamespaceStatus", [("phase", text())]);
    DeclType::object("kubernetes.Namespace", [("metadata", metadata), ("spec", spec), ("status", status)])
}

impl Compiler {
    /// Where `params` may be named, and where objects and patches can be made.
    #[must_use]
    pub fn new(params: bool, mutation: bool) -> Self {
        let mut env = Env::new().variable("object", Type::Dyn).variable("oldObject", Type::Dyn);
        if params {
            env = env.variable("params", Type::Dyn);
        }
        if mutation {
            env = env.mutation();
        }
        Self::of(env)
    }

    /// For [`check`](Self::check): what objects are, and parameters where there are any, of a type that may not be known.
    #[must_use]
    pub fn typed(object: DeclType, params: Option<Option<DeclType>>) -> Self {
        let mut env = Env::new().declare("object", object.clone()).declare("oldObject", object);
        if let Some(params) = params {
            env = env.declare("params", params.unwrap_or_else(|| unbounded(Type::Dyn)));
        }
        Self::of(env)
    }

    fn of(env: Env) -> Self {
        let env = env.declare("request", request()).declare("namespaceObject", namespace());
        let without_authorizer = env.clone();
        let env = env
            .variable("authorizer", Type::object("kubernetes.authorization.Authorizer"))
            .variable("authorizer.requestResource", Type::object("kubernetes.authorization.ResourceCheck"));
        Self { env, without_authorizer, has_variables: false }
    }

    /// An expression that comes to what is expected.
    ///
    /// # Errors
    /// What is wrong with it, as clients are told.
    pub fn compile(&self, text: &str, authorizer: bool, expected: Expected<'_>) -> Result<Program, String> {
        let env = if authorizer { &self.env } else { &self.without_authorizer };
        let program = env.compile(text).map_err(|error| error.detail())?;
        let found = program.output_type();
        if expected.iter().any(|(ty, _)| ty == found) {
            return Ok(program);
        }
        Err(match expected {
            [(_, name)] => format!("must evaluate to {name} but got {found}"),
            many => {
                let names: Vec<&str> = many.iter().map(|(_, name)| *name).collect();
                format!("must evaluate to one of [{}] but got {found}", names.join(" "))
            }
        })
    }

    /// What is wrong with an expression, whatever it comes to.
    #[must_use]
    pub fn check(&self, text: &str) -> Option<String> {
        self.env.compile(text).err().map(|error| error.to_string())
    }

    /// The expression of a variable, which later ones may name.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn variable(&mut self, name: &str, text: &str) -> Result<Program, String> {
        if !self.has_variables {
            for env in [&mut self.env, &mut self.without_authorizer] {
                *env = std::mem::take(env).variable("variables", Type::object(VARIABLES));
            }
            self.has_variables = true;
        }
        let compiled = self.env.compile(text).map_err(|error| error.detail());
        // One that is wrong is told once, not wherever it is named.
        let ty = compiled.as_ref().map_or(Type::Dyn, |program| program.output_type().clone());
        for env in [&mut self.env, &mut self.without_authorizer] {
            env.add_field(VARIABLES, name, ty.clone());
        }
        compiled
    }

    /// The expression of a mutation, by its patch type.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn mutation(&self, patch_type: &str, text: &str) -> Result<Program, String> {
        if patch_type == "JSONPatch" {
            let list = Type::list(Type::object("JSONPatch"));
            return self.compile(text, true, &[(list, "list(JSONPatch)")]);
        }
        self.compile(text, true, &[(Type::object("Object"), "Object")])
    }
}
