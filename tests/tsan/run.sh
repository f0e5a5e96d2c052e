#!/usr/bin/env bash
echo "waived: the twin under ThreadSanitizer is not written yet"
