//! Roles of a process: each is a row of a table that builds components, which are started in the table's order, awaited,
//! and drained by stages.
//!
//! A [`Role`] builds its [`Component`]s from what the process has. [`RunningStages`] starts them, reports the first that
//! ends before the stop, and drains one [`Stage`] after the other. Nothing here knows what a component does.

mod component;
mod failure;
mod running;
mod stage;

pub use component::{Component, StartCondition};
pub use failure::{Ending, Failure, RoleError};
pub use running::{RunningStage, RunningStages};
pub use stage::{Stage, Stops};

/// A row of the table of roles. `G` is what the roles of a process are built from.
#[derive(Debug)]
pub struct Role<G> {
    /// The name in error messages.
    pub name: &'static str,
    /// The stage of the role's components, unless a component says otherwise.
    pub stage: Stage,
    /// Builds the components without starting them. A process without the role has none.
    pub build: fn(&mut G) -> Result<Vec<Component>, Failure>,
}

/// Builds the components of a table, in its order, each with its stage.
///
/// # Errors
/// The first role that can't be built.
pub fn build<G>(roles: &[Role<G>], ground: &mut G) -> Result<Vec<(Stage, Component)>, RoleError> {
    let mut built = Vec::new();
    for role in roles {
        let components = (role.build)(ground).map_err(|source| RoleError::Unbuilt { name: role.name, source })?;
        built.extend(components.into_iter().map(|component| (component.stage().unwrap_or(role.stage), component)));
    }
    Ok(built)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_have_the_stage_of_their_role_or_their_own() {
        let table: [Role<Vec<&str>>; 2] = [
            Role {
                name: "store",
                stage: Stage::Servers,
                build: |names| {
                    names.push("store");
                    Ok(vec![Component::stopping("store", std::future::pending())])
                },
            },
            Role {
                name: "node",
                stage: Stage::Components,
                build: |names| {
                    names.push("node");
                    let tunnel = Component::stopping("tunnel", std::future::pending()).in_stage(Stage::Pods);
                    Ok(vec![Component::stopping("node", std::future::pending()), tunnel])
                },
            },
        ];
        let mut names = Vec::new();
        let built = build(&table, &mut names).unwrap();
        let stages: Vec<_> = built.iter().map(|(stage, component)| (*stage, component.name())).collect();
        assert_eq!(stages, [(Stage::Servers, "store"), (Stage::Components, "node"), (Stage::Pods, "tunnel")]);
        assert_eq!(names, ["store", "node"]);
    }

    #[test]
    fn a_role_that_cannot_be_built_is_named() {
        let table = [Role::<()> { name: "mill", stage: Stage::Pods, build: |()| Err("no water".into()) }];
        let error = build(&table, &mut ()).map(drop).unwrap_err();
        assert_eq!(error.to_string(), "the mill cannot be built");
        assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "no water");
    }
}
