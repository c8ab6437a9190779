"""Object detection: YOLOv8 with and without TempBalance (the paper's Appendix G, Table 7a)."""
