"""From predictions to numbers: COCO's AP, mIoU, files of results, samples to look at."""
