//! Fuzz target of inventory files.

use bolero::check;

use super::Inventory;

/// Lines of a file, and fragments that break them.
const PIECES: [&str; 16] = [
    "nodes:\n",
    "- name: a\n",
    "- name: b.c\n",
    "- name: ../x\n",
    "  providerID: p://1\n",
    "  providerID: ''\n",
    "  zone: z\n",
    "  region: 'r r'\n",
    "  instanceType: large\n",
    "  addresses: [{type: InternalIP, address: 10.0.0.1}, {type: Hostname, address: h}]\n",
    "  addresses: [{type: ExternalIP, address: '::'}]\n",
    "  labels: {example.com/rack: '7'}\n",
    "  labels: {a.k8s.io/x: y}\n",
    "  shutdown: true\n",
    "- &a [*a, *a]\n",
    "\u{0}",
];

#[test]
fn any_file_is_taken_or_refused() {
    check!().with_type::<Vec<u8>>().for_each(|bytes| {
        let text: String = bytes.iter().take(64).map(|byte| PIECES[usize::from(*byte) % PIECES.len()]).collect();
        let _ = Inventory::parse(&format!("nodes:\n{text}"));
        if let Ok(inventory) = Inventory::parse(&text) {
            assert!(inventory.len() <= text.matches("- name").count());
        }
        let _ = Inventory::parse(&String::from_utf8_lossy(bytes));
    });
}
