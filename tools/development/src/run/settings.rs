//! The flags that describe the pod of `coracle run`, and the parts of the pod template that they stand for. Pure.

use clap::Args;
use machinery_api::names::HOST;
use machinery_api::quantity::Quantity;
use serde_json::{Map, Value, json};

use super::objects::is_label;

/// Forms of `--volume`, for its errors.
const VOLUME_FORMS: &str = "one of NAME:/PATH (an empty folder), configmap/NAME:/PATH, secret/NAME:/PATH, \
                            pvc/NAME:/PATH or /HOST/FOLDER:/PATH (on nodes with --allow-host-path), with :ro at the \
                            end to mount it read-only";

/// Flags of the pod.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct PodFlags {
    /// Environment variable of the module; can be given several times
    #[arg(long, env = "CORACLE_ENV", value_name = "NAME=VALUE", value_parser = parse_variable)]
    env: Vec<(String, String)>,
    /// Secret whose keys are environment variables of the module; can be given several times
    #[arg(long, env = "CORACLE_SECRET", value_name = "NAME", value_delimiter = ',', value_parser = parse_object_name)]
    secret: Vec<String>,
    /// Memory limit and request, such as 64Mi
    #[arg(long, env = "CORACLE_MEMORY", value_name = "QUANTITY", value_parser = parse_quantity)]
    memory: Option<String>,
    /// CPU limit and request, such as 500m or 1
    #[arg(long, env = "CORACLE_CPU", value_name = "QUANTITY", value_parser = parse_quantity)]
    cpu: Option<String>,
    /// Volume and its path in the module: NAME:/PATH (an empty folder), configmap/NAME:/PATH, secret/NAME:/PATH,
    /// pvc/NAME:/PATH or /HOST/FOLDER:/PATH (on nodes with --allow-host-path); with :ro read-only; can be given several times
    #[arg(long, env = "CORACLE_VOLUME", value_name = "SOURCE:/PATH", value_delimiter = ',', value_parser = parse_volume)]
    volume: Vec<VolumeFlag>,
    /// Optional host interface that the module may import, such as keyvalue or config; can be given several times
    #[arg(long, env = "CORACLE_GRANT", value_name = "INTERFACE", value_delimiter = ',', value_parser = parse_object_name)]
    grant: Vec<String>,
    /// Annotation of the pods, such as fuel.coracle.dev/NAME=50000000; can be given several times
    #[arg(long, env = "CORACLE_ANNOTATION", value_name = "NAME=VALUE", value_parser = parse_variable)]
    annotation: Vec<(String, String)>,
}

/// A value of `--volume`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct VolumeFlag {
    source: VolumeSource,
    path: String,
    read_only: bool,
}

/// Source of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
enum VolumeSource {
    EmptyDir(String),
    ConfigMap(String),
    Secret(String),
    Claim(String),
    Host(String),
}

impl VolumeSource {
    /// The volume's name in the pod; `index` numbers the volumes without one of their own.
    fn volume_name(&self, index: usize) -> String {
        match self {
            Self::EmptyDir(name) => name.clone(),
            _ => format!("volume-{index}"),
        }
    }

    fn volume(&self, name: &str) -> Value {
        match self {
            Self::EmptyDir(_) => json!({"name": name, "emptyDir": {}}),
            Self::ConfigMap(of) => json!({"name": name, "configMap": {"name": of}}),
            Self::Secret(of) => json!({"name": name, "secret": {"secretName": of}}),
            Self::Claim(of) => json!({"name": name, "persistentVolumeClaim": {"claimName": of}}),
            Self::Host(path) => json!({"name": name, "hostPath": {"path": path, "type": "Directory"}}),
        }
    }
}

impl PodFlags {
    /// Checks what a single flag's parser can't.
    ///
    /// # Errors
    /// Two values exclude each other.
    pub(super) fn check(&self) -> Result<(), String> {
        for (index, volume) in self.volume.iter().enumerate() {
            let before = &self.volume[..index];
            if before.iter().any(|other| other.path == volume.path) {
                return Err(format!("--volume: two volumes have the path {}", volume.path));
            }
            let name = volume.source.volume_name(index);
            let mut others = self.volume.iter().enumerate().filter(|(_, other)| other.source != volume.source);
            if others.any(|(at, other)| other.source.volume_name(at) == name) {
                return Err(format!("--volume: the name {name:?} is of another volume: give another one"));
            }
        }
        for (flag, pairs) in [("--env", &self.env), ("--annotation", &self.annotation)] {
            if let Some(name) = repeated_name(pairs) {
                return Err(format!("{flag}: {name} is given twice"));
            }
        }
        Ok(())
    }

    /// These flags with further host interfaces.
    pub(super) fn with_grants(mut self, names: &[String]) -> Self {
        let further: Vec<String> = names.iter().filter(|name| !self.grant.contains(name)).cloned().collect();
        self.grant.extend(further);
        self
    }

    /// Annotations of the pods of a container, by key.
    pub(super) fn annotations(&self, container: &str) -> Map<String, Value> {
        let mut annotations = Map::new();
        if !self.grant.is_empty() {
            annotations.insert(format!("{HOST}{container}"), self.grant.join(",").into());
        }
        annotations.extend(self.annotation.iter().map(|(key, value)| (key.clone(), json!(value))));
        annotations
    }

    /// Adds the fields of the container.
    pub(super) fn add_to(&self, container: &mut Value, arguments: &[String]) {
        if !arguments.is_empty() {
            container["args"] = json!(arguments);
        }
        if !self.env.is_empty() {
            container["env"] = self.env.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
        }
        if !self.secret.is_empty() {
            container["envFrom"] = self.secret.iter().map(|name| json!({"secretRef": {"name": name}})).collect();
        }
        let quantities = [("memory", &self.memory), ("cpu", &self.cpu)];
        let quantities: Map<String, Value> = quantities
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), json!(value.as_ref()?))))
            .collect();
        if !quantities.is_empty() {
            container["resources"] = json!({"limits": quantities, "requests": quantities});
        }
        if !self.volume.is_empty() {
            container["volumeMounts"] = self.mounts().collect();
        }
    }

    fn mounts(&self) -> impl Iterator<Item = Value> {
        self.volume.iter().enumerate().map(|(index, volume)| {
            let mut mount = json!({"name": volume.source.volume_name(index), "mountPath": volume.path});
            if volume.read_only {
                mount["readOnly"] = true.into();
            }
            mount
        })
    }

    /// The pod's volumes; null without one, which removes those of an earlier run.
    pub(super) fn volumes(&self) -> Value {
        let mut volumes: Vec<Value> = Vec::new();
        for (index, volume) in self.volume.iter().enumerate() {
            let name = volume.source.volume_name(index);
            if volumes.iter().all(|other| other["name"] != name) {
                volumes.push(volume.source.volume(&name));
            }
        }
        if volumes.is_empty() { Value::Null } else { volumes.into() }
    }
}

fn parse_variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("wanted NAME=VALUE".into()),
    }
}

/// The first name that occurs twice.
fn repeated_name(pairs: &[(String, String)]) -> Option<&str> {
    let is_repeated =
        |(at, (name, _)): &(usize, &(String, String))| pairs[..*at].iter().any(|(other, _)| other == name);
    pairs.iter().enumerate().find(is_repeated).map(|(_, (name, _))| name.as_str())
}

fn parse_quantity(text: &str) -> Result<String, String> {
    let quantity = Quantity::parse(text).map_err(|error| format!("{error}, wanted a quantity such as 64Mi or 500m"))?;
    if quantity.sign() <= 0 {
        return Err("wanted a quantity above zero, such as 64Mi or 500m".into());
    }
    Ok(text.to_owned())
}

/// A name of a ConfigMap, Secret or claim: a DNS subdomain.
fn parse_object_name(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let is_name =
        text.len() <= 253 && text.chars().all(plain) && ends(text.chars().next()) && ends(text.chars().next_back());
    if is_name { Ok(text.to_owned()) } else { Err(format!("{text:?} is no name of an object")) }
}

fn parse_volume(text: &str) -> Result<VolumeFlag, String> {
    let wanted = || format!("wanted {VOLUME_FORMS}");
    let (rest, read_only) = match text.strip_suffix(":ro") {
        Some(rest) => (rest, true),
        None => (text, false),
    };
    let (source, path) = rest.rsplit_once(':').ok_or_else(wanted)?;
    if !path.starts_with('/') || path.len() < 2 || path.contains("..") {
        return Err(wanted());
    }
    let source = match source.split_once('/') {
        None if is_label(source) => VolumeSource::EmptyDir(source.to_owned()),
        Some(("", host)) if !host.is_empty() => VolumeSource::Host(source.to_owned()),
        Some(("configmap", name)) => VolumeSource::ConfigMap(parse_object_name(name)?),
        Some(("secret", name)) => VolumeSource::Secret(parse_object_name(name)?),
        Some(("pvc", name)) => VolumeSource::Claim(parse_object_name(name)?),
        _ => return Err(wanted()),
    };
    Ok(VolumeFlag { source, path: path.to_owned(), read_only })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volumes(texts: &[&str]) -> PodFlags {
        PodFlags { volume: texts.iter().map(|text| parse_volume(text).unwrap()).collect(), ..PodFlags::default() }
    }

    #[test]
    fn a_volume_has_one_of_five_forms() {
        let texts = [
            "cache:/var/cache",
            "configmap/settings:/etc/app",
            "secret/tls.v1:/certs:ro",
            "pvc/data:/data",
            "/srv/files:/files:ro",
            "cache:/tmp/other",
        ];
        let flags = volumes(&texts);
        flags.check().unwrap();
        let mut container = json!({});
        flags.add_to(&mut container, &[]);
        assert_eq!(
            flags.volumes(),
            json!([
                {"name": "cache", "emptyDir": {}},
                {"name": "volume-1", "configMap": {"name": "settings"}},
                {"name": "volume-2", "secret": {"secretName": "tls.v1"}},
                {"name": "volume-3", "persistentVolumeClaim": {"claimName": "data"}},
                {"name": "volume-4", "hostPath": {"path": "/srv/files", "type": "Directory"}},
            ])
        );
        assert_eq!(container["volumeMounts"][2], json!({"name": "volume-2", "mountPath": "/certs", "readOnly": true}));
        assert_eq!(container["volumeMounts"][5], json!({"name": "cache", "mountPath": "/tmp/other"}));
        assert_eq!(PodFlags::default().volumes(), Value::Null);
        for wrong in [
            "",
            "cache",
            "cache:",
            "cache:data",
            "Cache:/x",
            "image/x:/x",
            "configmap/:/x",
            "pvc/A:/x",
            ":/x",
            "/:/x",
            "a:/",
        ] {
            assert!(parse_volume(wrong).is_err(), "{wrong}");
        }
        assert!(parse_volume("image/x:/x").unwrap_err().contains("pvc/NAME:/PATH"));
        assert!(volumes(&["a:/x", "b:/x"]).check().is_err());
        assert!(volumes(&["volume-1:/x", "pvc/b:/y"]).check().is_err());
    }

    #[test]
    fn grants_and_annotations_are_the_pods() {
        let flags = PodFlags {
            grant: vec!["config".into()],
            annotation: vec![parse_variable("fuel.coracle.dev/web=5").unwrap()],
            ..PodFlags::default()
        };
        let flags = flags.with_grants(&["keyvalue".into(), "config".into()]);
        flags.check().unwrap();
        let wanted = json!({"fuel.coracle.dev/web": "5", "host.coracle.dev/web": "config,keyvalue"});
        assert_eq!(Value::Object(flags.annotations("web")), wanted);
        assert!(PodFlags::default().annotations("web").is_empty());
        let pair = parse_variable("a=b").unwrap();
        let twice = PodFlags { annotation: vec![pair.clone(), pair], ..PodFlags::default() };
        assert_eq!(twice.check().unwrap_err(), "--annotation: a is given twice");
    }

    #[test]
    fn limits_are_requests_and_unset_flags_are_absent() {
        let flags = PodFlags {
            env: vec![parse_variable("A=b=c").unwrap(), parse_variable("EMPTY=").unwrap()],
            secret: vec!["login".into()],
            memory: Some(parse_quantity("64Mi").unwrap()),
            ..PodFlags::default()
        };
        flags.check().unwrap();
        let mut container = json!({"name": "web"});
        flags.add_to(&mut container, &["--level".into(), "2".into()]);
        assert_eq!(
            container,
            json!({
                "name": "web",
                "args": ["--level", "2"],
                "env": [{"name": "A", "value": "b=c"}, {"name": "EMPTY", "value": ""}],
                "envFrom": [{"secretRef": {"name": "login"}}],
                "resources": {"limits": {"memory": "64Mi"}, "requests": {"memory": "64Mi"}},
            })
        );
        let mut container = json!({});
        PodFlags::default().add_to(&mut container, &[]);
        assert_eq!(container, json!({}));
        assert!(parse_variable("A").is_err() && parse_variable("=b").is_err());
        for wrong in ["", "64MB", "0", "-1", "x"] {
            assert!(parse_quantity(wrong).is_err(), "{wrong}");
        }
        let twice = PodFlags { env: vec![("A".into(), "1".into()), ("A".into(), "2".into())], ..PodFlags::default() };
        assert!(twice.check().unwrap_err().contains("given twice"));
    }
}
