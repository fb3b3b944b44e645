/** Tables. `Grid` renders the visible rows alone, so that thousands scroll; `Rows` is a plain table for short lists. */
import type { ComponentChildren } from "preact";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";

export interface Column<Row> {
  name: string;
  /** A track of CSS grid. */
  width: string;
  cell: (row: Row) => ComponentChildren;
  /** The column sorts by it. */
  sort?: (row: Row) => string | number;
  number?: boolean;
  title?: string;
}

const ROW_PX = 32;
/** Rows above and below the visible ones. */
const SPARE_ROWS = 8;

interface Order {
  column: number;
  descending: boolean;
}

const compare = (a: string | number, b: string | number): number => (a < b ? -1 : a > b ? 1 : 0);

function sorted<Row>(rows: Row[], columns: Column<Row>[], order: Order | undefined): Row[] {
  const by = order && columns[order.column]?.sort;
  if (!by) return rows;
  const keyed = rows.map((row) => [by(row), row] as const).sort((a, b) => compare(a[0], b[0]));
  const result = keyed.map((each) => each[1]);
  return order.descending ? result.reverse() : result;
}

function Header<Row>({ columns, order, onOrder }: { columns: Column<Row>[]; order: Order | undefined; onOrder: (order: Order) => void }) {
  return (
    <div class="row head" role="row" aria-rowindex={1}>
      {columns.map((column, n) => {
        const current = order?.column === n;
        const direction = current ? (order.descending ? "descending" : "ascending") : undefined;
        const choose = () => onOrder({ column: n, descending: current ? !order.descending : Boolean(column.number) });
        return (
          <div key={column.name} role="columnheader" class={column.number ? "number" : ""} aria-sort={direction} title={column.title}>
            {column.sort ? <button type="button" onClick={choose}>{column.name}<span aria-hidden="true">{current ? (order.descending ? " ↓" : " ↑") : ""}</span></button> : column.name}
          </div>
        );
      })}
    </div>
  );
}

/** The sum of the tracks' least widths, which are in rem. */
const leastRem = (widths: string[]): number => widths.reduce((sum, width) => sum + Number(/([\d.]+)rem/.exec(width)?.[1] ?? 0), 0);

export interface GridProps<Row> {
  label: string;
  rows: Row[];
  columns: Column<Row>[];
  keyOf: (row: Row) => string;
  /** The address that a row leads to. */
  href?: (row: Row) => string;
  initial?: Order;
}

/** A list with a selected row: arrows move it, Enter opens it. */
export function Grid<Row>({ label, rows, columns, keyOf, href, initial }: GridProps<Row>) {
  const scroller = useRef<HTMLDivElement>(null);
  const [order, setOrder] = useState<Order | undefined>(initial);
  const [top, setTop] = useState(0);
  const [height, setHeight] = useState(600);
  const [selected, setSelected] = useState("");
  const shown = sorted(rows, columns, order);
  useLayoutEffect(() => {
    const element = scroller.current!;
    const observer = new ResizeObserver(() => setHeight(element.clientHeight));
    observer.observe(element);
    return () => observer.disconnect();
  }, []);
  const first = Math.max(0, Math.floor(top / ROW_PX) - SPARE_ROWS);
  const last = Math.min(shown.length, Math.ceil((top + height) / ROW_PX) + SPARE_ROWS);
  // The header and the rows are two grids: the same tracks and the same least width keep their columns in line.
  const template = { gridTemplateColumns: columns.map((column) => column.width).join(" "), minWidth: `${leastRem(columns.map((column) => column.width))}rem` };

  const select = (index: number) => {
    const at = Math.max(0, Math.min(shown.length - 1, index));
    const row = shown[at];
    if (!row) return;
    setSelected(keyOf(row));
    const element = scroller.current!;
    const [above, below] = [at * ROW_PX, (at + 2) * ROW_PX - element.clientHeight];
    if (element.scrollTop > above) element.scrollTop = above;
    else if (element.scrollTop < below) element.scrollTop = below;
  };
  const onKeyDown = (event: KeyboardEvent) => {
    if (event.target !== scroller.current || event.ctrlKey || event.metaKey || event.altKey) return;
    const at = shown.findIndex((row) => keyOf(row) === selected);
    const pageRows = Math.max(1, Math.floor(height / ROW_PX) - 2);
    const moves: Record<string, number> = { ArrowDown: at + 1, ArrowUp: at - 1, j: at + 1, k: at - 1, PageDown: at + pageRows, PageUp: at - pageRows, Home: 0, End: shown.length - 1 };
    const move = moves[event.key];
    if (move !== undefined) select(move);
    else if (event.key === "Enter" && href && shown[at]) location.hash = href(shown[at]);
    else return;
    event.preventDefault();
  };
  const onFocus = (event: FocusEvent) => {
    if (event.target === scroller.current && !shown.some((row) => keyOf(row) === selected)) select(first);
  };
  return (
    <div class="grid" ref={scroller} role="grid" aria-label={label} aria-rowcount={shown.length + 1} tabIndex={0} onKeyDown={onKeyDown} onFocusIn={onFocus}
      aria-activedescendant={selected ? `row-${selected}` : undefined} onScroll={() => setTop(scroller.current!.scrollTop)}>
      <div class="columns" style={template}>
        <Header columns={columns} order={order} onOrder={setOrder} />
      </div>
      <div class="body" style={{ height: `${shown.length * ROW_PX}px` }}>
        <div class="window columns" style={{ ...template, transform: `translateY(${first * ROW_PX}px)` }}>
          {shown.slice(first, last).map((row, n) => {
            const key = keyOf(row);
            const open = href && ((event: MouseEvent) => { if (!(event.target as Element).closest("a,button")) location.hash = href(row); });
            return (
              <div key={key} id={`row-${key}`} class={`row ${key === selected ? "selected" : ""} ${href ? "opens" : ""}`} role="row" aria-rowindex={first + n + 2} aria-selected={key === selected} onClick={open}>
                {columns.map((column, c) => (
                  <div key={column.name} role="gridcell" class={column.number ? "number" : ""}>
                    {c === 0 && href ? <a href={href(row)} tabIndex={-1}>{column.cell(row)}</a> : column.cell(row)}
                  </div>
                ))}
              </div>
            );
          })}
        </div>
      </div>
    </div>
  );
}

const ROWS_MAX = 200;

export function Rows<Row>({ label, rows, columns, keyOf, href, max = ROWS_MAX }: Omit<GridProps<Row>, "initial"> & { max?: number }) {
  const [all, setAll] = useState(false);
  useEffect(() => setAll(false), [label]);
  const shown = all ? rows.slice(0, 2000) : rows.slice(0, max);
  return (
    <div class="rows">
      <table aria-label={label}>
        <thead><tr>{columns.map((column) => <th key={column.name} scope="col" class={column.number ? "number" : ""} title={column.title}>{column.name}</th>)}</tr></thead>
        <tbody>
          {shown.map((row) => (
            <tr key={keyOf(row)}>
              {columns.map((column, n) => <td key={column.name} class={column.number ? "number" : ""}>{n === 0 && href ? <a href={href(row)}>{column.cell(row)}</a> : column.cell(row)}</td>)}
            </tr>
          ))}
        </tbody>
      </table>
      {rows.length > shown.length && !all && <button type="button" class="more" onClick={() => setAll(true)}>Show all {rows.length}</button>}
    </div>
  );
}
