//! ServiceCIDRs: the blocks that Services' addresses are allocated from.

use crate::ResetFields;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::cells::{AGE, NAME, age, column, name};
use crate::field::{ErrorList, FieldError, IMMUTABLE, Path};
use crate::metadata::reset_for_status;
use crate::read::{at, fields, get, items, texts};
use crate::{Column, Context, Row, STATUS, Storage, Strategy, prepare_update_by_default, rules};

pub(crate) static ROW: Row = Row {
    group: "networking.k8s.io",
    kind: "ServiceCIDR",
    plural: "servicecidrs",
    singular: "servicecidr",
    schema: "io.k8s.api.networking.v1.ServiceCIDR",
    subresources: &[STATUS],
    storage: Storage::Stored("servicecidrs"),
    shows_empty: true,
    strategy: &ServiceCidr,
    example: r#"apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
metadata: {name: example}
spec: {cidrs: [192.0.2.0/24]}
"#,
    ..Row::CLUSTER
};

struct ServiceCidr;

const COLUMNS: &[Column] = &[NAME, column("CIDRs", "string"), AGE];
const CIDRS: Path<'static> = Path::root("spec.cidrs");

fn validate(errors: &mut ErrorList, object: &Value) {
    let spec = get(object, "spec");
    let list: Vec<&str> = texts(spec, "cidrs").collect();
    if list.is_empty() {
        return errors.required(&CIDRS, "at least one CIDR required");
    }
    if list.len() > 2 {
        let inner = json!({"CIDRs": list});
        let shown = crate::field::go_struct(&inner, &["CIDRs"]);
        return errors.add(|| FieldError::invalid_shown(&CIDRS, &shown, "may only hold up to 2 values"));
    }
    for (i, cidr) in list.iter().enumerate() {
        errors.invalid_each(&CIDRS.index(i), cidr, rules::cidr_strictly(cidr));
    }
    let family = |cidr: &str| rules::parse_cidr_leniently(cidr).map(|(ip, _)| ip.is_ipv4());
    if let [first, second] = list.as_slice()
        && let Some(first) = family(first)
        && family(second) == Some(first)
    {
        let why = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64";
        errors.invalid(&CIDRS, json!(list), why);
    }
}

impl Strategy for ServiceCidr {
    fn reset_fields(&self, subresource: &str) -> ResetFields {
        match subresource {
            "status" => ResetFields::METADATA_TOO,
            _ => ResetFields::Below(&[&["status"]]),
        }
    }

    fn default(&self, object: &mut Value) {
        // Go's encoder always writes both.
        for key in ["spec", "status"] {
            fields(object).entry(key).or_insert_with(|| json!({}));
        }
    }

    fn prepare_create(&self, _: &Context<'_>, object: &mut Value) {
        fields(object).insert("status".into(), json!({}));
    }

    fn prepare_update(&self, context: &Context<'_>, new: &mut Value, old: &Value) {
        prepare_update_by_default(context, new, old);
        if !context.subresource.is_empty() {
            reset_for_status(new, old);
        }
    }

    fn validate(&self, context: &Context<'_>, object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
        if !context.subresource.is_empty() {
            return;
        }
        let Some(old) = old else { return validate(errors, object) };
        let list = |object| items(at(object, &["spec"]), "cidrs");
        let (had, has) = (list(old), list(object));
        let kept = |errors: &mut ErrorList| {
            for (i, (new, old)) in has.iter().zip(had).enumerate() {
                errors.immutable(&CIDRS.index(i), new, old);
            }
        };
        match (had.len(), has.len()) {
            (a, b) if a == b => kept(errors),
            (1, 2) => {
                kept(errors);
                validate(errors, object);
            }
            _ => errors.invalid(&CIDRS, at(object, &["spec", "cidrs"]).clone(), IMMUTABLE),
        }
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let list: Vec<&str> = texts(get(object, "spec"), "cidrs").collect();
        vec![name(object), json!(list.join(",")), age(object, now)]
    }
}
