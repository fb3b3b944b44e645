//! Expressions of policies and match conditions: their variables and their result types.

use apiserver_cel::types::{DeclType, Type};
use apiserver_cel::{Env, Program};

/// Compiles the expressions of one policy. A variable's expression may use the variables before it.
pub struct Compiler {
    env: Env,
    /// For messages, which may not use `authorizer`.
    without_authorizer: Env,
    has_variables: bool,
}

/// The type of `variables`.
const VARIABLES: &str = "kubernetes.variables";

/// The result types that an expression may have, each with its name in messages.
pub type Expected<'a> = &'a [(Type, &'a str)];

/// Result of a validation or a match condition.
pub const BOOL: Expected<'static> = &[(Type::Bool, "bool")];
/// Result of a message expression.
pub const STRING: Expected<'static> = &[(Type::String, "string")];
/// Result of an audit annotation.
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
    /// For evaluation: `params` declares parameters, `mutation` allows object and patch construction.
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

    /// For [`check`](Self::check), with the types of objects and parameters; `Some(None)`: unknown parameters.
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

    /// Compiles an expression with an expected result type.
    ///
    /// # Errors
    /// The message for clients.
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

    /// The compile error of an expression with any result type.
    #[must_use]
    pub fn check(&self, text: &str) -> Option<String> {
        self.env.compile(text).err().map(|error| error.to_string())
    }

    /// Declares `variables`, without a variable.
    pub(super) fn declare_variables(&mut self) {
        if !self.has_variables {
            for env in [&mut self.env, &mut self.without_authorizer] {
                *env = std::mem::take(env).variable("variables", Type::object(VARIABLES));
            }
            self.has_variables = true;
        }
    }

    /// Compiles a variable's expression and declares the variable.
    ///
    /// # Errors
    /// The message for clients.
    pub fn variable(&mut self, name: &str, text: &str) -> Result<Program, String> {
        self.declare_variables();
        let compiled = self.env.compile(text).map_err(|error| error.detail());
        // An error in a variable is reported once and not at each use.
        let ty = compiled.as_ref().map_or(Type::Dyn, |program| program.output_type().clone());
        for env in [&mut self.env, &mut self.without_authorizer] {
            env.add_field(VARIABLES, name, ty.clone());
        }
        compiled
    }

    /// Compiles a mutation's expression, whose result depends on the patch type.
    ///
    /// # Errors
    /// The message for clients.
    pub fn mutation(&self, patch_type: &str, text: &str) -> Result<Program, String> {
        if patch_type == "JSONPatch" {
            let list = Type::list(Type::object("JSONPatch"));
            return self.compile(text, true, &[(list, "list(JSONPatch)")]);
        }
        self.compile(text, true, &[(Type::object("Object"), "Object")])
    }
}
