"""The page's look: light and dark, wide and narrow, on screen and on paper."""

STYLE = """
:root{--ink:#1b1f24;--soft:#57606a;--paper:#fff;--card:#f6f8fa;--line:#d8dee4;--good:#1a7f37;--warn:#9a6700;
--c0:#0a7a5c;--c1:#b3541e;--c2:#4456c7;--c3:#8a3f8f;--c4:#6e7781;--c5:#c4990c;--c6:#2f9ac4;--c7:#a3343f;--c8:#b8c0c8}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9198a1;--paper:#0d1117;--card:#161b22;--line:#30363d;
--good:#3fb950;--warn:#d29922;--c0:#3fc49b;--c1:#f0914f;--c2:#8b9bff;--c3:#d08bd6;--c4:#9aa4af;--c5:#e3b341;
--c6:#6cc7ec;--c7:#f47067;--c8:#484f58}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1080px;margin:0 auto;padding:28px 20px 60px}
header p{color:var(--soft);margin:2px 0 14px}h1{font-size:27px;margin:0;overflow-wrap:anywhere}
h2{font-size:18px;margin:34px 0 12px;padding-top:4px}
nav{position:sticky;top:0;z-index:1;background:var(--paper);border-bottom:1px solid var(--line);display:flex;
gap:4px 18px;overflow-x:auto;padding:9px 0;margin-bottom:16px;font-size:13.5px;white-space:nowrap}
nav a{color:var(--soft);text-decoration:none}nav a:hover{color:var(--ink)}section{scroll-margin-top:44px}
.state{font-size:13px;font-weight:600;vertical-align:middle;padding:2px 10px;border-radius:12px;
border:1px solid currentColor;color:var(--warn)}.state.done{color:var(--good)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(170px,1fr));gap:10px}
.tile{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px 12px}
.tile b{display:block;font-size:20px;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
.tile span{color:var(--soft);font-size:13px}
.grid2{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,440px),1fr));gap:14px;
margin:0 0 14px}
figure{margin:0 0 14px;background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px}
.grid2 figure{margin:0}
figcaption{font-size:13px;color:var(--soft);padding:0 4px 6px}figcaption b{color:var(--ink);float:right}
svg{width:100%;height:auto;display:block}svg text{font:11px system-ui,sans-serif;fill:var(--soft)}
svg .grid{stroke:var(--line);fill:none}
svg .mark{stroke:var(--soft);stroke-dasharray:2 3;fill:none;stroke-width:1}
svg polyline,svg path:not(.grid):not(.mark){fill:none;stroke-width:1.8;stroke-linejoin:round}
.c0{stroke:var(--c0)}.c1{stroke:var(--c1)}.c2{stroke:var(--c2)}.c3{stroke:var(--c3)}
.f0{fill:var(--c2);background:var(--c2)}.f1{fill:var(--c3);background:var(--c3)}
.f2{fill:var(--c5);background:var(--c5)}.f3{fill:var(--c0);background:var(--c0)}
.f4{fill:var(--c1);background:var(--c1)}.f5{fill:var(--c6);background:var(--c6)}
.f6{fill:var(--c4);background:var(--c4)}.f7{fill:var(--c7);background:var(--c7)}
.f8{fill:var(--c8);background:var(--c8)}
.d0{fill:var(--c0)}.d1{fill:var(--c1)}.d2{fill:var(--c2)}.d3{fill:var(--c3)}
svg .thin{stroke-width:1.2}
.bar{height:30px;border-radius:6px}.legend{list-style:none;display:flex;flex-wrap:wrap;gap:4px 18px;padding:0;
margin:10px 4px 0;font-size:13px}.legend i{font-style:normal;color:var(--soft)}
.tiles+p{margin:14px 0 0}
.key{display:inline-block;width:11px;height:11px;border-radius:3px;margin-right:6px}
.scroll{overflow-x:auto}.scroll+.scroll{margin-top:20px}
table{border-collapse:collapse;font-size:13.5px;font-variant-numeric:tabular-nums}
td,th{text-align:left;padding:4px 18px 4px 0;border-bottom:1px solid var(--line);vertical-align:top;
max-width:640px;overflow-wrap:break-word}
td:last-child{overflow-wrap:anywhere}
td.right,th.right,td.near,th{white-space:nowrap}td.right,th.right{text-align:right}
@media(max-width:600px){td,th{padding-right:12px}main{padding:18px 14px 40px}
.tiles{grid-template-columns:repeat(auto-fit,minmax(100px,1fr));gap:8px}.tile{padding:7px 9px}
.tile b{font-size:17px}.tile span{font-size:12px}
.screen thead{display:none}.screen tr,.screen td:last-child{display:block;border-bottom:1px solid var(--line)}
.screen td:not(:last-child){border:0;padding-bottom:0}.screen tr{border:0}
svg text{font-size:13.5px}}
th{color:var(--soft);font-weight:600}
pre{background:var(--card);border:1px solid var(--line);border-radius:8px;
padding:12px;overflow-x:auto;font-size:12.5px}details{margin:12px 0}
summary{cursor:pointer;color:var(--soft);margin-bottom:10px}
@media print{:root{--ink:#000;--soft:#444;--paper:#fff;--card:#fff;--line:#bbb;--c0:#0a7a5c;--c1:#b3541e;
--c2:#4456c7;--c3:#8a3f8f;--c4:#6e7781;--c5:#c4990c;--c6:#2f9ac4;--c7:#a3343f;--c8:#b8c0c8}
body,table{font-size:11px}main{max-width:none;padding:0}nav,.screen{display:none}
.grid2{grid-template-columns:1fr 1fr}figure,tr,.tile{break-inside:avoid}h2{break-after:avoid;margin-top:22px}
pre{white-space:pre-wrap}td,th{padding-right:12px}td{overflow-wrap:anywhere}
details:not(.screen)::details-content{content-visibility:visible}summary{list-style:none}*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""
