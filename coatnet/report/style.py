"""The page's look: light and dark, wide and narrow, on screen and on paper."""

STYLE = """
:root{--ink:#1b1f24;--soft:#57606a;--paper:#fff;--card:#f6f8fa;--line:#d8dee4;--good:#1a7f37;--warn:#9a6700;
--c0:#0a7a5c;--c1:#b3541e;--c2:#4456c7;--c3:#8a3f8f;--c4:#6e7781;--c5:#c4990c;--c6:#2f9ac4;--c7:#a3343f;--c8:#b8c0c8}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9198a1;--paper:#0d1117;--card:#161b22;--line:#30363d;
--good:#3fb950;--warn:#d29922;--c0:#3fc49b;--c1:#f0914f;--c2:#8b9bff;--c3:#d08bd6;--c4:#9aa4af;--c5:#e3b341;
--c6:#6cc7ec;--c7:#f47067;--c8:#484f58}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1040px;margin:0 auto;padding:28px 20px 60px}
header p{color:var(--soft);margin:0 0 18px}h1{font-size:26px;margin:0}h2{font-size:18px;margin:36px 0 12px}
.state{font-size:13px;font-weight:600;vertical-align:middle;padding:2px 10px;border-radius:12px;
border:1px solid currentColor;color:var(--warn)}.state.done{color:var(--good)}
.tiles{display:grid;
grid-template-columns:repeat(auto-fill,minmax(120px,1fr));gap:10px}
.tile{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px 12px}
.tile b{display:block;font-size:20px;font-variant-numeric:tabular-nums}
.tile span{color:var(--soft);font-size:13px}
.grid2{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,420px),1fr));gap:14px}
figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px}
figcaption{font-size:13px;color:var(--soft);padding:0 4px 4px}figcaption b{color:var(--ink);float:right}
svg{width:100%;height:auto;display:block}svg text{font:11px system-ui,sans-serif;fill:var(--soft)}
svg .grid{stroke:var(--line);fill:none}svg polyline,svg path:not(.grid){fill:none;stroke-width:1.8}
.c0{stroke:var(--c0)}.c1{stroke:var(--c1)}.c2{stroke:var(--c2)}.c3{stroke:var(--c3)}.dot{fill:var(--c0)}
.f0{fill:var(--c0);background:var(--c0)}.f1{fill:var(--c1);background:var(--c1)}
.f2{fill:var(--c2);background:var(--c2)}.f3{fill:var(--c3);background:var(--c3)}
.f4{fill:var(--c4);background:var(--c4)}.f5{fill:var(--c5);background:var(--c5)}
.f6{fill:var(--c6);background:var(--c6)}.f7{fill:var(--c7);background:var(--c7)}
.f8{fill:var(--c8);background:var(--c8)}
.bar{height:30px;border-radius:6px}.legend{list-style:none;display:flex;flex-wrap:wrap;gap:4px 18px;padding:0;
font-size:13px}.key{display:inline-block;width:11px;height:11px;border-radius:3px;margin-right:6px}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:13.5px;font-variant-numeric:tabular-nums}
td,th{text-align:left;padding:4px 18px 4px 0;border-bottom:1px solid var(--line);vertical-align:top}
th{color:var(--soft);font-weight:600}
pre{background:var(--card);border:1px solid var(--line);border-radius:8px;
padding:12px;overflow-x:auto;font-size:12.5px}details{margin-top:12px}summary{cursor:pointer;color:var(--soft)}
@media print{body{font-size:11px}details{display:block}}
"""
