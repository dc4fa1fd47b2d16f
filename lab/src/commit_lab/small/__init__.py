"""Models joined from small pretrained parts."""
