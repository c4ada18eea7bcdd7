"""The explorer: one page, `report.html`, of what an output folder holds, that opens offline. It is
made from manifests, tables and pictures alone (`page.build`), and knows neither torch nor a
model."""
